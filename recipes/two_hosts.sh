#!/bin/bash
# Trains one model on two machines without a scheduler. On the first, then on the second:
#
#   bash recipes/two_hosts.sh 0 first.example second.example
#   bash recipes/two_hosts.sh 1 first.example second.example
#
# Both have the same text and see the same model folder. Ports 2222 have to be open between them, and to them alone:
# TensorFlow's messages are neither encrypted nor authenticated.

index=${1:?which of the hosts this is, 0 or 1}
first=${2:?name of the first host}
second=${3:?name of the second host}

export TF_CONFIG="{\"cluster\": {\"worker\": [\"$first:2222\", \"$second:2222\"]}, \"task\": {\"type\": \"worker\", \"index\": $index}}"
exec python nmt_train.py --strategy multi_worker --config config_demo --model_dir runs/demo
