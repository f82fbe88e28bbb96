/* A server without a C library, so that it can be built for any kind of program that the compiler
   knows: listens on 127.0.0.1:8888 and sends "hello" to each client. */

#ifdef __i386__
enum { WRITE = 4, CLOSE = 6, EXIT = 1, SOCKET = 359, BIND = 361, LISTEN = 363, ACCEPT4 = 364 };
#else
enum { WRITE = 1, CLOSE = 3, EXIT = 60, SOCKET = 41, BIND = 49, LISTEN = 50, ACCEPT4 = 288 };
#endif

static long call(long number, long a, long b, long c) {
    long result;
#ifdef __i386__
    __asm__ volatile("xor %%esi, %%esi; int $0x80"
                     : "=a"(result)
                     : "a"(number), "b"(a), "c"(b), "d"(c)
                     : "esi", "memory");
#else
    register long r10 __asm__("r10") = 0;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
#endif
    return result;
}

void _start(void) {
    /* struct sockaddr_in: AF_INET, port 8888 and 127.0.0.1 in network order */
    unsigned char address[16] = {2, 0, 0x22, 0xb8, 127, 0, 0, 1};
#ifdef __i386__
    call(49, 0, 0, 0); /* geteuid and getegid, with the numbers that bind and listen have in the */
    call(50, 0, 0, 0); /* 64-bit table */
#endif
    long listener = call(SOCKET, 2, 1, 0);
    if (call(BIND, listener, (long)address, sizeof address) < 0 || call(LISTEN, listener, 16, 0) < 0)
        call(EXIT, 1, 0, 0);
    call(WRITE, 1, (long)"listening\n", 10);
    for (;;) {
        long client = call(ACCEPT4, listener, 0, 0);
        call(WRITE, client, (long)"hello\n", 6);
        call(CLOSE, client, 0, 0);
    }
}
