#!/usr/bin/env bash
# A study of generated phantoms on a real Slurm, which this script starts on this machine alone and stops at its end.
#
# Needs root, Debian's slurm-wlm and munge (apt-get install slurm-wlm munge), and
#   pip install "nnunet-ext[workflow]" snakemake-executor-plugin-slurm
# Usage: benchmarks/slurm/run.sh FOLDER    (FOLDER must not exist; the study, its page and Slurm's logs stay in it)
#
# There is no slurmdbd, so that Snakemake asks squeue for the state of jobs; FOLDER/jobs.txt holds what scontrol knows
# of every job that it has seen.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(realpath -m "${1:?Usage: $0 FOLDER}")
[ ! -e "$folder" ] || { echo "$folder exists" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "Slurm's daemons are started by root" >&2; exit 1; }
for name in munged slurmctld slurmd sbatch nnunet_ext; do
    command -v $name > /dev/null || { echo "$name is not installed" >&2; exit 1; }
done
# Snakemake's jobs keep no SLURM_ variable, so that srun in them reads the configuration from its default place
[ ! -e /etc/slurm/slurm.conf ] || { echo "/etc/slurm/slurm.conf exists: this machine has a Slurm already" >&2; exit 1; }
mkdir -p "$folder"/{slurm/state,slurm/spool,raw,preprocessed,results}

pids=()
stop() {
    for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
    wait || true
    rm -f /etc/slurm/slurm.conf
}
trap stop EXIT

# munge, with a key and a socket of its own; its user must be able to reach them
munge_folder=$(mktemp -d /tmp/munge-XXXXXX)
head -c 1024 /dev/urandom > "$munge_folder/key"
chmod 600 "$munge_folder/key"
chmod 755 "$munge_folder"
munged --foreground --force --key-file="$munge_folder/key" --socket="$munge_folder/socket" \
    --pid-file="$munge_folder/pid" --log-file="$munge_folder/log" --seed-file="$munge_folder/seed" &
pids+=($!)

mkdir -p /etc/slurm
ln -s "$folder/slurm/slurm.conf" /etc/slurm/slurm.conf
cat > "$folder/slurm/slurm.conf" << END
ClusterName=alone
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$munge_folder/socket
CredType=cred/munge
StateSaveLocation=$folder/slurm/state
SlurmdSpoolDir=$folder/slurm/spool
SlurmctldPidFile=$folder/slurm/slurmctld.pid
SlurmdPidFile=$folder/slurm/slurmd.pid
SlurmctldLogFile=$folder/slurm/slurmctld.log
SlurmdLogFile=$folder/slurm/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=16 RealMemory=256000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
sleep 1
slurmctld -D &
pids+=($!)
slurmd -D &
pids+=($!)
for _ in $(seq 60); do
    sinfo -h -o %T 2> /dev/null | grep -q idle && break
    sleep 1
done
sinfo

export nnUNet_raw="$folder/raw" nnUNet_preprocessed="$folder/preprocessed" nnUNet_results="$folder/results"
export nnUNet_compile=f nnUNet_n_proc_DA=0 nnUNet_def_n_proc=1 OMP_NUM_THREADS=1
python - "$folder" << 'END'
import sys

from nnunet_ext.demo.phantoms import generate_dataset

generate_dataset(f"{sys.argv[1]}/raw/Dataset998_Phantoms", training=5, test=2, shape=(16, 32, 32))
END
cp "$here/study.yaml" "$folder"

(while sleep 2; do scontrol --oneliner show jobs > "$folder/jobs.new" 2> /dev/null && mv "$folder/jobs.new" "$folder/jobs.txt"
    squeue -h -o "%i %T %j %l %m %C" >> "$folder/squeue.txt" 2> /dev/null; done) &
pids+=($!)
nnunet_ext run "$folder/study.yaml" --profile slurm --snakemake="--jobs 4 --slurm-status-command squeue \
    --slurm-no-account --seconds-between-status-checks 5 --slurm-init-seconds-before-status-checks 5 --latency-wait 30"
sleep 3
nnunet_ext run "$folder/study.yaml" --status
echo "Jobs that Slurm ran:"
sed -E 's/.*JobId=([0-9]+).*JobState=([A-Z]+).*RunTime=([0-9:]+).*TimeLimit=([0-9:-]+).*Comment=([^ ]+).*/\1 \2 ran \3 limit \4 \5/' "$folder/jobs.txt"
