#!/usr/bin/env bash
# pack.sh ARCHIVE: the checkout as a tarball; setup.sh runs this.
#
# In it are the files that git tracks and the new ones that it does not ignore, as they are now.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$(dirname "$1")"
archive=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
cd "$root"
export COPYFILE_DISABLE=1 # macOS: no ._ files
git ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d '' file; do
    if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\0' "$file"; fi
  done | tar --null -T - -czf "$archive"
