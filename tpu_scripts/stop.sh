#!/usr/bin/env bash
# stop.sh [--dry-run]: stops training on every worker; it saves a checkpoint first.
#
# The slice stays and costs money: see delete.sh. train.sh continues. Stop loop.sh first, which
# would start training again.

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"
start "$@"

need_slice
worker all stop "$STOP_SECONDS"
