"""Say "ready", wait for one signal, and say its number and who has sent it."""

import signal

everything = signal.valid_signals()
signal.pthread_sigmask(signal.SIG_BLOCK, everything)
print("ready", flush=True)
info = signal.sigwaitinfo(everything)
print(info.si_signo, info.si_pid, flush=True)
