#!/usr/bin/env bash
# The whole suite in an environment of its own: bash tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -x .venv/bin/python ] || python3 -m venv .venv
export PATH=$PWD/.venv/bin:$PATH:/usr/sbin:/sbin
stamp=.venv/.tests-installed  # of this pyproject.toml
if ! cmp -s pyproject.toml "$stamp"; then
  pip install --quiet --disable-pip-version-check --editable '.[fid,dev]'
  cp pyproject.toml "$stamp"
fi
# The tests on a cluster bring up their own: as root, with SLURM's programs
slurm=()
for program in sbatch slurmctld slurmd munged ip shellcheck; do
  command -v $program > /dev/null || slurm=(-m "not slurm")
done
[ "$(id -u)" = 0 ] || slurm=(-m "not slurm")
[ ${#slurm[@]} = 0 ] || echo "without the tests on a SLURM cluster: they need root and the packages named in .ci/run"
# A test is a process of its own with one thread; files stay together, so that fixtures are made once, in conftest's order.
exec pytest --numprocesses auto --dist loadfile --no-loadscope-reorder ${slurm[@]+"${slurm[@]}"} "$@"
