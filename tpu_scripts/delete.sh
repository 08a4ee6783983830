#!/usr/bin/env bash
# delete.sh [--dry-run]: deletes the slice, so that its billing stops. The bucket stays.
#
# Looks afterwards whether it is gone. Where nothing is there, that is said and is no error. To
# save a checkpoint of the last minutes, run stop.sh first. A node of this name that outlives its
# queued resource is deleted, too (--dry-run does not show that).

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"
start "$@"

looks=0
while :; do
  state=$(queued_state)
  [ -n "$state" ] || break
  looks=$((looks + 1))
  [ "$looks" -le 20 ] || die "$NAME is still $state after $((looks - 1)) looks and may cost money."
  case $state in
    DELETING | SUSPENDING) say "$NAME is $state" ;;
    *) delete_queued ;;
  esac
  DRY_STATE=''
  if [ "$looks" -gt 1 ]; then pause; fi
done
list=$(nodes)
if awk -v name="$NAME" '$1 == name { found = 1 } END { exit !found }' <<<"$list"; then
  run gcloud compute tpus tpu-vm delete "$NAME" "${PLACE[@]}" --quiet
  list=$(nodes)
fi
if awk -v name="$NAME" '$1 == name { found = 1 } END { exit !found }' <<<"$list"; then
  die "node $NAME is still listed and may cost money."
fi
say "no queued resource and no node $NAME in $ZONE: nothing of it costs money any more."
if [ -n "$list" ]; then
  say "other TPUs of $PROJECT in $ZONE, which cost money: ${list//$'\n'/, }"
fi
say "still paid for: what is stored in gs://$BUCKET, until" \
  "\`gcloud storage rm --recursive gs://$BUCKET\` (that deletes all runs)."
