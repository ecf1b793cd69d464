# shellcheck shell=bash disable=SC2034  # not every script uses every command
# Shared by the sbatch scripts. Each lists its settings with their defaults, then sources this file, which reads the
# settings from the arguments, prepares the environment, and defines the commands that start processes on the nodes.

die() { echo "error: $*" >&2; exit 2; }

# ---------------------------------------------------------------- settings

# name=value sets a variable that has a default; the arguments after the settings are for the dist-sketch command.
while [[ ${1:-} =~ ^([a-z]+)=(.*)$ && -v ${BASH_REMATCH[1]} ]]; do
  # Not every shell puts the home folder in place of out=~/faces.
  declare "${BASH_REMATCH[1]}=${BASH_REMATCH[2]/#\~\//${HOME:-\~}/}"
  shift
done
[[ $# = 0 || $1 == --* ]] || die "$1: neither a setting of this script (name=value) nor an option (--name)"

# ---------------------------------------------------------------- environment: change it here, for all scripts

if [ -n "$modules" ]; then
  set +u   # the site's functions may use unset variables
  read -rd "" -a names <<< "$modules"
  module load "${names[@]}" || die "modules=$modules cannot be loaded"
  set -u
fi
[ -z "$venv" ] || export PATH=$venv/bin:$PATH
command -v dist-sketch > /dev/null || die "there is no dist-sketch on the PATH: give venv=FOLDER"
export PYTHONSAFEPATH=1   # no modules from the folder that the job is started in
export WANDB_MODE=${WANDB_MODE:-offline}   # nodes often have no network; `dist-sketch sync` later
[ -z "${interface:-}" ] || export NCCL_SOCKET_IFNAME=$interface GLOO_SOCKET_IFNAME=$interface

# ---------------------------------------------------------------- commands

read -rd "" -a wrapping <<< "${wrap:-}"   # several options; unlike $wrap without quotes, * and ? stay what they are
# srun does not take over the job's --cpus-per-task by itself.
cpus=--cpus-per-task=${SLURM_CPUS_PER_TASK:-1}
one_task=(srun --export=ALL --nodes=1 --ntasks=1 "$cpus" "${wrapping[@]}")
each_node=(srun --export=ALL --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1
  "$cpus" --kill-on-bad-exit=1 --wait=60 "${wrapping[@]}")
# USR2 warns a training. Until `dist-sketch node` handles the signal, it would end the task.
# shellcheck disable=SC2016  # "$@" is for the inner shell
ignore_usr2=(bash -c 'trap "" USR2; exec "$@"' node)
node=(dist-sketch node ${procs:+--procs "$procs"} ${port:+--port "$port"})
