"""What `flashrt doctor` finds: one line for each thing that must be right, with the fix where it is not."""

from flashrt_ros.doctor.finding import Finding, Level

__all__ = ['Finding', 'Level']
