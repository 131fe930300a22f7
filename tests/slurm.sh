#!/usr/bin/env bash
# Runs a command beside a Slurm of two nodes on this one machine, and takes it down again:
#     tests/slurm.sh sinfo
# On Debian: apt-get install slurm-wlm munge. Root is needed to act for munge's own user, otherwise munge runs as you.
# Without Slurm it says so and runs nothing; with BRAINLDM_SLURM_REQUIRED=1 that is an error.
set -euo pipefail

PATH="$PATH:/usr/sbin:/sbin"
for program in munged slurmctld slurmd sbatch; do
    if ! command -v "$program" >/dev/null; then
        echo "slurm.sh: skipped, no $program here (on Debian: apt-get install slurm-wlm munge)" >&2
        exit "${BRAINLDM_SLURM_REQUIRED:-0}"
    fi
done

unset SLURM_CONF
folder=$(mktemp -d /tmp/brainldm-slurm.XXXXXX) # short: a socket's path must be
started=()

stop() {
    code=$?
    if [[ ${SLURM_CONF:-} == "$folder/slurm.conf" ]]; then # never a real cluster's jobs
        timeout 10 scancel --user="$(id -un)" >/dev/null 2>&1 || true
        for ((turn = 0; turn < 50; turn++)); do
            [[ -n $(timeout 10 squeue --noheader 2>/dev/null) ]] || break
            sleep 0.2
        done
    fi
    # The daemons do not always follow a request to end, and nothing of theirs is kept.
    for pid in "${started[@]}"; do
        kill -KILL "$pid" && wait "$pid"
    done 2>/dev/null || true
    if ((code)) && [[ -n ${BRAINLDM_SLURM_KEEP:-} ]]; then
        echo "slurm.sh: logs are kept in $folder" >&2
    else
        rm -rf "$folder"
    fi
    exit "$code"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

until_it_works() { # seconds, command
    local seconds=$1 turn
    shift
    for ((turn = 0; turn < 5 * seconds; turn++)); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.2
    done
    echo "slurm.sh: gave up on '$*'; the last lines of the logs:" >&2
    for log in "$folder"/*.log; do tail -n 5 "$log" >&2; done
    exit 1
}

# Munge does not run as root, and wants a folder of its own that others can only look into.
mkdir "$folder/munge" "$folder/state" "$folder/one" "$folder/two"
chmod 755 "$folder"
head -c 1024 /dev/urandom >"$folder/munge/key"
chmod 600 "$folder/munge/key"
chmod 711 "$folder/munge"
as_munge=()
if [[ $(id -u) == 0 ]]; then
    chown -R munge "$folder/munge"
    as_munge=(setpriv --reuid munge --clear-groups)
fi
"${as_munge[@]}" munged --foreground --num-threads 2 --key-file "$folder/munge/key" --socket "$folder/munge/socket" \
    --pid-file "$folder/munge/pid" --seed-file "$folder/munge/seed" --log-file "$folder/munge/log" \
    >"$folder/munge.log" 2>&1 &
started+=($!)
until_it_works 10 munge --socket "$folder/munge/socket" --no-input

# Processes are found by /proc, so that no control groups are needed. A GPU here is an empty file.
host=$(hostname -s)
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
cat >"$folder/slurm.conf" <<CONF
ClusterName=brainldm
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=3600
NodeName=one NodeHostname=$host NodeAddr=127.0.0.1 Port=$(free_port) CPUs=2 RealMemory=8000 Gres=gpu:2
NodeName=two NodeHostname=$host NodeAddr=127.0.0.1 Port=$(free_port) CPUs=2 RealMemory=8000 Gres=gpu:2
PartitionName=nodes Nodes=one,two Default=YES State=UP
CONF
touch "$folder/gpu0" "$folder/gpu1"
echo "Name=gpu File=$folder/gpu[0-1]" >"$folder/gres.conf"
export SLURM_CONF="$folder/slurm.conf"

# Snakemake's job steps forget SLURM_CONF, which on a cluster is in its usual place.
mkdir "$folder/bin"
printf '#!/bin/sh\nSLURM_CONF=%q exec %q "$@"\n' "$SLURM_CONF" "$(command -v srun)" >"$folder/bin/srun"
chmod +x "$folder/bin/srun"
export PATH="$folder/bin:$PATH"

slurmctld -D >"$folder/slurmctld.out.log" 2>&1 &
started+=($!)
for node in one two; do
    slurmd -D -N "$node" >"$folder/$node.out.log" 2>&1 &
    started+=($!)
done
until_it_works 60 timeout 10 srun --nodes=2 true

BRAINLDM_TEST_SLURM=1 "$@"
