#!/usr/bin/env bash
# logs.sh [--worker N] [--follow] [--dry-run]: the end of a worker's log (worker 0 by default).
#
# --follow goes on with what is added, until Ctrl-C; training does not notice.

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"
which=0 follow='' rest=()
while [ $# -gt 0 ]; do
  case $1 in
    --follow) follow=follow ;;
    --worker)
      [[ ${2-} =~ ^[0-9]+$ ]] || die "--worker is '${2-}'; wanted: a number, counted from 0."
      which=$2
      shift
      ;;
    *) rest+=("$1") ;;
  esac
  shift
done
start ${rest[@]+"${rest[@]}"}

need_slice
worker "$which" log 100 ${follow:+"$follow"}
