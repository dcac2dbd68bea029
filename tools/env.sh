# Enters this checkout's ROS 2 environment (bash or zsh, after `make build`):
#
#     . tools/env.sh                  # ROS 2 Kilted, from .venv
#     ROS=jazzy . tools/env.sh        # ROS 2 Jazzy, from .venv-jazzy
#
# Replaces what a distribution's setup.bash has put into the same variables. For one command: tools/in_env COMMAND...

_self=${BASH_SOURCE[0]:-${(%):-%x}}
_root=$(cd "$(dirname "$_self")/.." && pwd)
_ros=${ROS:-kilted}
_venv=$_root/.venv
[ "$_ros" = kilted ] || _venv=$_root/.venv-$_ros
_install=$_root/install/$_ros

if [ -e "$_install/share/flashrt_ros/package.xml" ]; then
    _site=$(echo "$_venv"/lib/python3.*/site-packages)
    _built=$(echo "$_install"/lib/python3.*/site-packages)
    export VIRTUAL_ENV=$_venv
    case :$PATH: in *:"$_venv/bin":*) ;; *) export PATH=$_venv/bin:$_install/lib/flashrt_ros:$PATH ;; esac
    export AMENT_PREFIX_PATH=$_install:$_venv
    # The working tree comes first: its modules run as they are, only the compiled messages come from the build.
    export PYTHONPATH=$_root:$_built
    export LD_LIBRARY_PATH=$_install/lib:$_venv/lib
    for _libraries in "$_site"/ros_*.libs; do
        [ -d "$_libraries" ] && LD_LIBRARY_PATH=$LD_LIBRARY_PATH:$_libraries
    done
    # The ROS wheels start every interpreter twice to set the line above, unless told that it has been done.
    export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
    export ROS_DISTRO=$_ros ROS_VERSION=2 RMW_IMPLEMENTATION=rmw_fastrtps_cpp
    # Nothing leaves the loopback interface.
    export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST
    # Fast DDS 2, which Jazzy has, reads the older name only; Fast DDS 3 warns about it.
    _profile=$_root/config/fastdds_large_images.xml
    if [ "$_ros" = jazzy ]; then
        export FASTRTPS_DEFAULT_PROFILES_FILE=${FASTRTPS_DEFAULT_PROFILES_FILE:-$_profile}
    else
        export FASTDDS_DEFAULT_PROFILES_FILE=${FASTDDS_DEFAULT_PROFILES_FILE:-$_profile}
    fi
    _status=0
else
    echo "flashrt_ros is not built for ROS 2 $_ros: nothing in $_install. Run: make build ROS=$_ros" >&2
    _status=1
fi
unset _self _root _ros _venv _install _site _built _libraries _profile
[ "$_status" = 0 ]
