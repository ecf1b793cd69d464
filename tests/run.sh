#!/usr/bin/env bash
# The whole suite in an environment of its own: bash tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -x .venv/bin/python ] || python3 -m venv .venv
export PATH=$PWD/.venv/bin:$PATH:/usr/sbin:/sbin
stamp=.venv/.tests-installed  # the pyproject.toml that was installed last
if ! cmp -s pyproject.toml "$stamp"; then
  pip install --quiet --disable-pip-version-check --editable '.[fid,dev]'
  cp pyproject.toml "$stamp"
fi
# The tests on a SLURM cluster start their own, which takes root and SLURM's programs
marks=""
for program in sbatch slurmctld slurmd munged ip shellcheck; do
  command -v $program > /dev/null || marks="not slurm"
done
[ "$(id -u)" = 0 ] || marks="not slurm"
[ -z "$marks" ] || echo "without the tests on a SLURM cluster: they need root and the packages named in .ci/run"
if ! type chromium npm > /dev/null 2>&1; then
  marks="${marks:+$marks and }not browser"
  echo "without the tests of the page in a browser: they need the programs chromium and npm"
fi
# One worker more than there are cores, because tests on clusters and with W&B often wait. Each file stays with one
# worker, so that its fixtures are made once; the files start in the order of conftest.py.
workers=$(($(nproc) + 1))
exec pytest --numprocesses $workers --dist loadfile --no-loadscope-reorder ${marks:+-m "$marks"} "$@"
