# keeper.sh GROUP DIRECTORY: sees to it that a guest does not outlive its harness.
# Standard input is a pipe that only the harness holds open. However the harness ends, the pipe
# closes; then the guest's process group is killed and its run directory removed.
# `kill -s KILL --`, because not every shell takes `kill -KILL --`.
trap '' HUP INT TERM
cat >/dev/null
kill -s KILL -- "-$1" 2>/dev/null
rm -rf -- "$2"
