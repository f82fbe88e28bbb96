"""System calls and /proc: what the kernel does, without any policy of ours."""
