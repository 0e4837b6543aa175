// A web server as small as it gets: it answers every request with the contents of the files that it is
// given, and ends on SIGTERM.
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void end(int sig) {
    (void)sig;
    _exit(0);
}

static void copy(int from, int to) {
    char b[4096];
    ssize_t n;
    while ((n = read(from, b, sizeof(b))) > 0)
        if (write(to, b, n) != n)
            return;
}

int main(int argc, char** argv) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, s = socket(AF_INET, SOCK_STREAM, 0);
    if (argc < 3)
        return 2;
    at.sin_port = htons(atoi(argv[1]));
    signal(SIGTERM, end);
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(s, (struct sockaddr*)&at, sizeof(at)) || listen(s, 8))
        return 1;
    for (;;) {
        static const char head[] = "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n";
        char request[4096];
        int c = accept(s, NULL, NULL);
        if (c < 0)
            continue;
        if (read(c, request, sizeof(request)) > 0 && write(c, head, sizeof(head) - 1) > 0)
            for (int i = 2; i < argc; i++) {
                int f = open(argv[i], O_RDONLY);
                if (f < 0)
                    _exit(3);
                copy(f, c);
                close(f);
            }
        close(c);
    }
}
