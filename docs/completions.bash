# made by docs/generate.py; for bash: . docs/completions.bash
complete -o default -W '--port --portwrap-path -P --guest-port --forward --allow-from --network --outward --publish --host-service -v --verbose -q --quiet --check --json --hub --apparmor -h --help --version' batchspawner-portwrap batchspawner-portwrap.pyz
complete -o default -W '-p --host-port --host -P --guest-port --forward --allow-from --network --outward --publish --host-service -v --verbose -h --help --version' portwrap
