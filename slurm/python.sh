# Sourced by the job scripts, in the project's folder: PYTHON is the command that runs it.
if [[ -n ${TRANSFERGRID_PYTHON:-} ]]; then
  read -r -a PYTHON <<< "$TRANSFERGRID_PYTHON"      # e.g. "apptainer exec --nv image.sif python"
elif [[ -x .venv/bin/python ]]; then
  PYTHON=(.venv/bin/python)
elif command -v uv > /dev/null; then
  PYTHON=(uv run python)
else
  echo "error: no .venv here and no uv on the PATH; run \`uv sync\` where there is a network, or set TRANSFERGRID_PYTHON" >&2
  exit 2
fi
