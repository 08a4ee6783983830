#!/usr/bin/env bash
# train.sh [--dry-run]: starts training on every worker, or continues it from its last checkpoint.
#
# Training goes on when the connection ends. A worker where it already runs is left as it is.

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"
start "$@"

need_slice
worker all start "$RUN" "$CONFIG" "$DATA_NAME" ${EXTRA[@]+"${EXTRA[@]}"}
