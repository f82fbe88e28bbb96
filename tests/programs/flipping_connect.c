/* flipping_connect OUTSIDE PORT COUNT [nonblocking]

   Connects COUNT times to OUTSIDE:PORT, while another thread writes 127.0.0.1 into the same address
   and back, all the time. Prints how many connections got to which of the two, and how many to none.
   It goes on for up to TIMES as many where one address was hardly seen: on a busy machine the other
   thread may not run for long. */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SEEN = 100, TIMES = 20 };

static volatile struct sockaddr_in address = {.sin_family = AF_INET};
static in_addr_t outside, loopback;
static volatile int running = 1;

static void *flip(void *unused)
{
    while (running) {
        address.sin_addr.s_addr = loopback;
        address.sin_addr.s_addr = outside;
    }
    return unused;
}

/* Where this socket got to: 0 is nowhere. */
static in_addr_t peer_of(int number)
{
    struct sockaddr_in peer;
    socklen_t size = sizeof peer;
    return getpeername(number, (struct sockaddr *)&peer, &size) ? 0 : peer.sin_addr.s_addr;
}

int main(int count, char **words)
{
    int reached = 0, left = 0, failed = 0, flags = SOCK_STREAM, wanted;
    struct linger reset = {1, 0};
    pthread_t flipper;
    if (count < 4)
        return 2;
    inet_pton(AF_INET, words[1], &outside);
    loopback = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(atoi(words[2]));
    address.sin_addr.s_addr = outside;
    if (count > 4)
        flags |= SOCK_NONBLOCK;
    wanted = atoi(words[3]);
    pthread_create(&flipper, NULL, flip, NULL);
    for (int each = 0; each < wanted || (each < TIMES * wanted && (left <= SEEN || failed <= SEEN)); each++) {
        int number = socket(AF_INET, flags, 0);
        if (connect(number, (struct sockaddr *)&address, sizeof address) && errno == EINPROGRESS) {
            struct pollfd waiting = {number, POLLOUT, 0};
            poll(&waiting, 1, 10000);
        }
        in_addr_t peer = peer_of(number);
        reached += peer == loopback;
        left += peer == outside;
        failed += peer == 0;
        setsockopt(number, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(number);
    }
    running = 0;
    pthread_join(flipper, NULL);
    printf("%d %d %d\n", reached, left, failed);
    return 0;
}
