# shellcheck shell=bash
# Settings of the scripts in this folder. Edit them here, or override each in the environment:
# `RUN=second ./train.sh`. ./common.sh checks them.

: "${PROJECT:=}"                     # Google Cloud project that pays (no default)
: "${ZONE:=us-west4-a}"              # zone of the TPU; the bucket is made in its region
: "${NAME:=nvib}"                    # name of the queued resource and of its node
: "${ACCELERATOR:=v5litepod-8}"      # kind and number of chips; more than one host is fine
: "${RUNTIME:=v2-alpha-tpuv5-lite}"  # software of the TPU VM, one for each kind of TPU
: "${SPOT:=true}"                    # true: cheap and may be taken away; false: on demand
: "${VALID_UNTIL:=}"                 # longest wait in the queue, e.g. 6h; empty: no limit
: "${BUCKET:=}"                      # Cloud Storage bucket for the runs, without gs:// (no default)
: "${CONFIG:=configs/base.py}"       # what to train: a config file, path inside the checkout
: "${DATA:=}"                        # folder of text here: train*, valid*, test*; setup.sh uploads it
: "${RUN:=$NAME}"                    # name of the run: its folder is gs://BUCKET/runs/RUN
: "${ARGS:=}"                        # more words for `nvib train`; quotes hold a word together
: "${POLL_SECONDS:=30}"              # seconds between two looks at the slice
: "${STOP_SECONDS:=120}"             # seconds that training has to save after SIGTERM
: "${MAX_RESTARTS:=3}"               # starts in a row without a new checkpoint before loop.sh ends
: "${DELETE_ON_FAILURE:=true}"       # true: loop.sh deletes the slice when it gives up, too
