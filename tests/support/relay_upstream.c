/* A fast llama-server for the relay's measurements: answers at once, on a unix socket and on TCP, and may write as
 * many log lines for each request as the real one does.
 *
 *   relay_upstream SOCKET PORT LOG_LINES
 *
 * A request whose body has "stream":true gets 32 events and [DONE], chunked, in pieces of one event; any other gets a
 * JSON answer of known length with usage and timings. Single-threaded: epoll, non-blocking, level-triggered.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BUFFER (2 << 20)
#define EVENTS 32

struct connection {
    int fd;
    int stream_left; /* events still to be sent, 0 when no stream is on */
    size_t used;
    char *in;
};

static int poller, log_lines;
static char plain[2048], event[512], last[1024];
static size_t plain_length, event_length, last_length;

static void die(const char *what) { perror(what); exit(1); }

static void prepare(void)
{
    const char *body = "{\"choices\":[{\"finish_reason\":\"length\",\"index\":0,\"message\":{\"role\":\"assistant\","
        "\"content\":\"Certainly. Here is what you asked for, in a few words and no more than that.\"}}],"
        "\"created\":1764100000,\"model\":\"bench\",\"object\":\"chat.completion\","
        "\"usage\":{\"completion_tokens\":16,\"prompt_tokens\":20,\"total_tokens\":36,"
        "\"prompt_tokens_details\":{\"cached_tokens\":4}},\"id\":\"chatcmpl-0123456789abcdef\","
        "\"timings\":{\"cache_n\":4,\"prompt_n\":16,\"prompt_ms\":1.5,\"predicted_n\":16,\"predicted_ms\":8.25}}";
    plain_length = snprintf(plain, sizeof plain, "HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nKeep-Alive: timeout=5, max=100\r\n"
        "Content-Type: application/json; charset=utf-8\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
    const char *data = "data: {\"choices\":[{\"finish_reason\":null,\"index\":0,\"delta\":{\"content\":\" word\"}}],"
        "\"created\":1764100000,\"id\":\"chatcmpl-0123456789abcdef\",\"model\":\"bench\",\"object\":\"chat.completion.chunk\"}\n\n";
    event_length = snprintf(event, sizeof event, "%zx\r\n%s\r\n", strlen(data), data);
    const char *end = "data: {\"choices\":[{\"finish_reason\":\"length\",\"index\":0,\"delta\":{}}],"
        "\"timings\":{\"cache_n\":4,\"prompt_n\":16,\"prompt_ms\":1.5,\"predicted_n\":32,\"predicted_ms\":8.25}}\n\ndata: [DONE]\n\n";
    last_length = snprintf(last, sizeof last, "%zx\r\n%s\r\n0\r\n\r\n", strlen(end), end);
}

static void drop(struct connection *c)
{
    close(c->fd);
    free(c->in);
    free(c);
}

static int say(struct connection *c, const char *data, size_t length)
{
    return send(c->fd, data, length, MSG_NOSIGNAL) == (ssize_t)length ? 0 : -1; /* far below a socket's buffer */
}

static void write_log(void)
{
    static const char line[] =
        "{\"type\":\"log\",\"time\":1764100000000000,\"level\":\"info\",\"msg\":\"slot update_slots: id  0 | task 12 | new prompt, "
        "n_ctx_slot = 4096, n_keep = 0, task.n_tokens = 20\\n\"}\n";
    for (int i = 0; i < log_lines; i++)
        if (write(STDOUT_FILENO, line, sizeof line - 1) < 0 && errno != EAGAIN) exit(0);
}

static void watch(struct connection *c, int output)
{
    struct epoll_event e = {.events = EPOLLIN | (output ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static int answer(struct connection *c, const char *head, const char *body, size_t length)
{
    if (memmem(head, body - head, "/input_tokens ", 14)) {
        const char *count = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 19\r\n\r\n{\"input_tokens\":20}";
        return say(c, count, strlen(count));
    }
    write_log();
    if (memmem(body, length, "\"stream\":true", 13)) {
        const char *begin = "HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\n"
            "Transfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n";
        c->stream_left = EVENTS + 1;
        watch(c, 1);
        return say(c, begin, strlen(begin));
    }
    return say(c, plain, plain_length);
}

/* Answers every whole request in the buffer; -1 closes the connection. */
static int consume(struct connection *c)
{
    while (c->used && !c->stream_left) {
        char *end = memmem(c->in, c->used, "\r\n\r\n", 4);
        if (!end) return 0;
        size_t head = end - c->in + 4, length = 0;
        char *field = memmem(c->in, head, "ontent-Length: ", 15);
        if (!field) field = memmem(c->in, head, "ontent-length: ", 15);
        if (field) length = strtoul(field + 15, NULL, 10);
        if (c->used < head + length) return 0;
        if (answer(c, c->in, c->in + head, length)) return -1;
        c->used -= head + length;
        memmove(c->in, c->in + head + length, c->used);
    }
    return 0;
}

static int handle(struct connection *c, unsigned events)
{
    if (events & EPOLLIN) {
        if (c->used == BUFFER) return -1;
        ssize_t got = recv(c->fd, c->in + c->used, BUFFER - c->used, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN)) return -1;
        if (got > 0) c->used += got;
    } else if (events & (EPOLLHUP | EPOLLERR)) {
        return -1;
    }
    if (c->stream_left && (events & EPOLLOUT)) {
        c->stream_left--;
        if (c->stream_left ? say(c, event, event_length) : say(c, last, last_length)) return -1;
        if (!c->stream_left) watch(c, 0);
    }
    return consume(c);
}

static void take(int listener)
{
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->in = malloc(BUFFER);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    }
}

int main(int argc, char **argv)
{
    if (argc != 4) { fprintf(stderr, "usage: relay_upstream SOCKET PORT LOG_LINES\n"); return 64; }
    signal(SIGPIPE, SIG_IGN);
    log_lines = atoi(argv[3]);
    fcntl(STDOUT_FILENO, F_SETPIPE_SZ, 1 << 20);
    prepare();
    poller = epoll_create1(0);
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    strncpy(local.sun_path, argv[1], sizeof local.sun_path - 1);
    struct sockaddr_in tcp = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listeners[2] = {socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)};
    int one = 1;
    setsockopt(listeners[1], SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listeners[0], (void *)&local, sizeof local) || bind(listeners[1], (void *)&tcp, sizeof tcp)) die("bind");
    for (int i = 0; i < 2; i++) {
        if (listen(listeners[i], 1024)) die("listen");
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = &listeners[i]};
        epoll_ctl(poller, EPOLL_CTL_ADD, listeners[i], &e);
    }
    for (;;) {
        struct epoll_event ready[256];
        int count = epoll_wait(poller, ready, 256, -1);
        for (int i = 0; i < count; i++) {
            void *who = ready[i].data.ptr;
            if (who == &listeners[0] || who == &listeners[1]) take(*(int *)who);
            else if (handle(who, ready[i].events)) drop(who);
        }
    }
}
