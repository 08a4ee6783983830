#!/usr/bin/env bash
# setup.sh [--dry-run]: this checkout, its packages and the bucket, on every worker.
#
# Copies the files that git tracks and the new ones that it does not ignore; installs them in a
# virtual environment; mounts the bucket at ~/bucket. Copies DATA, if it is set, to data/ in the
# bucket. Run it again after a change of the code or the data. A worker where training runs is left
# as it is.

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"
start "$@"

need_slice
upload_data
archive=$ROOT/build/nvib_jax.tar.gz
run bash "$HERE/pack.sh" "$archive"
run gcloud compute tpus tpu-vm scp "$archive" "$NAME:nvib_jax.tar.gz" "${PLACE[@]}" --worker=all
ssh_to all "rm -rf nvib_jax.new && mkdir nvib_jax.new &&\
 tar -xzf nvib_jax.tar.gz -C nvib_jax.new &&\
 bash nvib_jax.new/tpu_scripts/worker.sh setup $(quoted "$BUCKET")"
