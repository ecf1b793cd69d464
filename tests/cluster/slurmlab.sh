#!/usr/bin/env bash
# A real SLURM cluster on this machine; needs root. It starts in two seconds, and leaves nothing behind.
#
#   slurmlab.sh up DIR                    start it, with all its files in DIR
#   slurmlab.sh exec DIR COMMAND ...      run a command on the login node (sbatch, squeue, ...)
#   slurmlab.sh node DIR NODE COMMAND ... run a command on a node
#   slurmlab.sh kill-node DIR NODE        kill a node, as if it lost its power (start-node: start it again)
#   slurmlab.sh cut-node DIR NODE         cut a node off the network (join-node: connect it again)
#   slurmlab.sh down DIR                  stop it
#
# Variables, with their defaults: LAB_NODES (2); LAB_CPUS (8) and LAB_GPUS (2, not real) per node; LAB_PREFIX of the
# nodes' names (node), which must differ between clusters that run at the same time.
#
# The login node ("head") is a set of namespaces (processes, network, host name, mounts) whose first process, if killed,
# ends everything inside. Each node is another such set inside it, connected to the head by a bridge. So the cluster has
# its own addresses, ports, host names and /dev/shm, and nothing outside DIR changes.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
SELF=$(readlink -f "$0")
[ $# -ge 2 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
verb=$1 DIR=$(readlink -m "$2")
shift 2
# shellcheck source=/dev/null
[ ! -r "$DIR/settings" ] || . "$DIR/settings"
NODES=${LAB_NODES:-2} CPUS=${LAB_CPUS:-8} GPUS=${LAB_GPUS:-2} PREFIX=${LAB_PREFIX:-node}
SUBNET=10.77.0
HEAD=$SUBNET.254
export SLURM_CONF=$DIR/slurm.conf

own_namespaces() {  # COMMAND ...: runs it as process 1 of its own namespaces; when this unshare ends, so do they
  exec setsid unshare --fork --pid --kill-child=KILL --mount-proc --mount --uts --net "$@"
}
enter() {           # PID COMMAND ...: runs a command in a process's namespaces
  local pid=$1
  shift
  exec nsenter --target "$pid" --pid --mount --uts --net --wd="$PWD" -- "$@"
}
pid_of_head() { pgrep --parent "$(cat "$DIR/run/outer")"; }             # process 1 of the head, seen from outside
pid_of_node() { pgrep --full --exact "bash $SELF __node $DIR $1"; }     # process 1 of a node
is_gone() {         # PID: waits for its end, at most 5 s
  for _ in $(seq 100); do
    case $(cut -d' ' -f3 "/proc/$1/stat" 2> /dev/null) in '' | Z) return 0 ;; esac
    sleep 0.05
  done
  return 1
}

configure() {
  mkdir -p "$DIR"/{munge,state,log,run,dev,spool,freezer}
  chmod 755 "$DIR" "$DIR/munge"
  printf 'LAB_NODES=%s LAB_CPUS=%s LAB_GPUS=%s LAB_PREFIX=%s\n' "$NODES" "$CPUS" "$GPUS" "$PREFIX" > "$DIR/settings"
  (umask 077; head -c 128 /dev/urandom > "$DIR/munge/key")
  {
    echo "127.0.0.1 localhost"
    echo "$HEAD head"
    for n in $(seq "$NODES"); do echo "$SUBNET.$n $PREFIX$n"; done
  } > "$DIR/hosts"
  local memory
  memory=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
  cat > "$SLURM_CONF" <<END
ClusterName=lab
SlurmctldHost=head($HEAD)
SlurmctldPort=26817
SlurmdPort=26818
SrunPortRange=26900-27900
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its credentials have expired: 120 s by default. Not less than 10 s: on a busy machine a
# step may take seconds to start with them
AuthInfo=cred_expire=10,socket=$DIR/munge/socket
CredType=cred/munge
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
PlugStackConfig=$DIR/plugstack.conf
# As on production clusters, signals reach only the first process of a task, and no process survives its job
ProctrackType=proctrack/cgroup
TaskPlugin=task/none
MpiDefault=none
# A node that comes back takes jobs at once
ReturnToService=2
# More CPUs a node than this machine has
SlurmdParameters=config_overrides
# The signal of --signal=B:USR2 is also sent at a preemption
SlurmctldParameters=preempt_send_user_signal
# Refuse jobs that can never run
EnforcePartLimits=ALL
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,bf_resolution=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Seconds from SIGTERM to SIGKILL, and until a silent node counts as down
KillWait=5
UnkillableStepTimeout=30
SlurmctldTimeout=30
SlurmdTimeout=15
MinJobAge=3600
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/log/jobcomp.txt
GresTypes=gpu
NodeName=${PREFIX}[1-$NODES] NodeAddr=${SUBNET}.[1-$NODES] CPUs=$CPUS RealMemory=$memory Gres=gpu:h100:$GPUS State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=1:00:00 DefaultTime=10:00 PriorityTier=2
PartitionName=low  Nodes=ALL MaxTime=1:00:00 DefaultTime=10:00 PriorityTier=1 GraceTime=20
PartitionName=high Nodes=ALL MaxTime=1:00:00 DefaultTime=10:00 PriorityTier=10 PreemptMode=OFF
END
  printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nCgroupMountpoint=%s\n' "$DIR" > "$DIR/cgroup.conf"
  : > "$DIR/plugstack.conf"
  # Any character device can pose as a GPU: copies of /dev/null
  local gpu
  for gpu in $(seq 0 $((GPUS - 1))); do [ -e "$DIR/dev/gpu$gpu" ] || mknod "$DIR/dev/gpu$gpu" c 1 3; done
  echo "NodeName=${PREFIX}[1-$NODES] Name=gpu Type=h100 File=$DIR/dev/gpu[0-$((GPUS - 1))]" > "$DIR/gres.conf"
}

power_on() {        # NODE: inside the head
  local node=$1 number=${1#"$PREFIX"} pid
  ip link delete "v$number" 2> /dev/null || true
  (own_namespaces "$SELF" __node "$DIR" "$node") >> "$DIR/log/$node.init" 2>&1 < /dev/null &
  pid=$!
  until [ "$(readlink /proc/$pid/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
  ip link add "v$number" type veth peer name eth0 netns $pid
  ip link set "v$number" master bridge up
}

case $verb in
  up)
    configure
    cd /
    (own_namespaces "$SELF" __head "$DIR") > "$DIR/log/head.init" 2>&1 < /dev/null &
    echo $! > "$DIR/run/outer"
    end=$((SECONDS + 30)) state=
    while [ $SECONDS -lt $end ]; do
      state=$(timeout 3 "$SELF" exec "$DIR" sinfo --noheader --partition=main --format='%T %D' 2> /dev/null || true)
      [ "$state" = "idle $NODES" ] && exit 0
      sleep 0.05
    done
    echo "the cluster did not come up: '$state'" >&2
    tail -n 5 "$DIR"/log/*.init "$DIR"/log/*.log >&2 || true
    "$SELF" down "$DIR"
    exit 1
    ;;
  __head)           # process 1 of the login node
    hostname head
    mount --bind "$DIR/hosts" /etc/hosts
    ip link set lo up
    ip link add bridge type bridge
    ip address add "$HEAD/24" dev bridge
    ip link set bridge up
    mount -t cgroup -o freezer cgroup "$DIR/freezer"   # proctrack/cgroup needs no more; visible only in here
    munged --force --key-file="$DIR/munge/key" --socket="$DIR/munge/socket" --pid-file="$DIR/munge/pid" \
      --log-file="$DIR/munge/log" --seed-file="$DIR/munge/seed" --num-threads=2
    slurmctld -D -i -f "$SLURM_CONF" > /dev/null 2>&1 &
    for n in $(seq "$NODES"); do power_on "$PREFIX$n"; done
    while :; do     # process 1 must outlive and reap its children
      wait -n || true
      [ -n "$(jobs -p)" ] || sleep 3600
    done
    ;;
  __node)           # process 1 of a node
    hostname "$1"
    mkdir -p "$DIR/spool/$1"
    mount -t tmpfs tmpfs /dev/shm
    until ip link show eth0 > /dev/null 2>&1; do sleep 0.01; done
    ip link set lo up
    ip address add "$SUBNET.${1#"$PREFIX"}/24" dev eth0
    ip link set eth0 up
    slurmd -D -f "$SLURM_CONF" -N "$1" > /dev/null 2>&1 &
    while :; do     # outlives its slurmd, as a real node does
      wait -n || true
      [ -n "$(jobs -p)" ] || sleep 3600
    done
    ;;
  exec) enter "$(pid_of_head)" "$@" ;;
  node)
    pid=$(pid_of_node "${1:?node}")
    shift
    enter "$pid" "$@"
    ;;
  kill-node) kill -KILL "$(pid_of_node "${1:?node}")" ;;
  start-node) enter "$(pid_of_head)" "$SELF" __power_on "$DIR" "${1:?node}" ;;
  __power_on) power_on "$1" ;;
  cut-node) enter "$(pid_of_head)" ip link set "v${1#"$PREFIX"}" down ;;
  join-node) enter "$(pid_of_head)" ip link set "v${1#"$PREFIX"}" up ;;
  down)
    outer=$(cat "$DIR/run/outer")
    inner=$(pid_of_head || echo "$outer")
    kill -KILL "$outer"
    is_gone "$outer" && is_gone "$inner"
    rm "$DIR/run/outer"
    # The kernel keeps the freezer groups of the jobs: remove them
    # shellcheck disable=SC2016  # the inner shell's own
    unshare --mount sh -c 'mount -t cgroup -o freezer cgroup "$1/freezer" &&
      find "$1/freezer" -depth -type d -path "*/slurm_$2[0-9]*" -exec rmdir {} +' sh "$DIR" "$PREFIX" || true
    ;;
  *) echo "$verb: there is no such command" >&2; exit 2 ;;
esac
