/* Load for the relay's measurements: so many connections, each sending the same request again as soon as it is answered.
 *
 *   relay_load PORT CONNECTIONS REQUESTS BODY_BYTES plain|stream [KEY]
 *
 * Prints one line: requests, seconds, errors, p50, p90, p99 and the longest latency in microseconds. An error is any status
 * but 200, or a connection that ended within an answer. A connection that ends between answers is opened again.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUFFER 65536

struct connection {
    int fd;
    size_t sent, used;
    long body_left; /* -1: the head has not come whole; -2: chunked */
    char tail[8];   /* the last bytes of a chunked body */
    double begun_s;
    char in[BUFFER];
};

static int poller, port;
static char *request;
static size_t request_length;
static long wanted, begun, done, errors;
static double *latencies;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void watch(struct connection *c, int how, unsigned events)
{
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(poller, how, c->fd, &e);
}

static void open_it(struct connection *c)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (void *)&to, sizeof to)) { perror("connect"); exit(1); }
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void reopen(struct connection *c)
{
    close(c->fd);
    open_it(c);
}

static void push(struct connection *c)
{
    while (c->sent < request_length) {
        ssize_t put = send(c->fd, request + c->sent, request_length - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put < 0) break;
        c->sent += put;
    }
    watch(c, EPOLL_CTL_MOD, EPOLLIN | (c->sent < request_length ? EPOLLOUT : 0));
}

static void begin(struct connection *c)
{
    if (begun == wanted) { epoll_ctl(poller, EPOLL_CTL_DEL, c->fd, NULL); close(c->fd); c->fd = -1; return; }
    begun++;
    c->sent = c->used = 0;
    c->body_left = -1;
    memset(c->tail, 0, sizeof c->tail);
    c->begun_s = now_s();
    push(c);
}

static void end(struct connection *c, int ok)
{
    latencies[done++] = now_s() - c->begun_s;
    errors += !ok;
    if (!ok) reopen(c);
    begin(c);
}

static void body(struct connection *c, const char *data, size_t length)
{
    if (c->body_left == -2) {
        char seen[16];
        size_t keep = length < 5 ? length : 5;
        memcpy(seen, c->tail, 5);
        memcpy(seen + 5, data + length - keep, keep);
        memcpy(c->tail, seen + keep, 5);
        if (!memcmp(c->tail, "0\r\n\r\n", 5)) end(c, 1);
    } else if ((c->body_left -= length) <= 0) {
        end(c, 1);
    }
}

static void take(struct connection *c)
{
    ssize_t got = recv(c->fd, c->in + c->used, BUFFER - c->used, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        if (c->used == 0 && c->body_left == -1 && c->sent == request_length && got == 0) { reopen(c); c->sent = 0; push(c); }
        else end(c, 0);
        return;
    }
    if (c->body_left != -1) { body(c, c->in, got); return; }
    c->used += got;
    char *stop = memmem(c->in, c->used, "\r\n\r\n", 4);
    if (!stop) return;
    if (memcmp(c->in + 9, "200", 3)) { end(c, 0); return; }
    size_t head = stop - c->in + 4, rest = c->used - head;
    *stop = 0;
    char *field = strcasestr(c->in, "content-length: ");
    c->body_left = field ? atol(field + 16) : -2;
    c->used = 0;
    if (rest) body(c, c->in + head, rest);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void make_request(long body_bytes, int stream, const char *key)
{
    const char *front = "{\"model\":\"bench\",\"messages\":[{\"role\":\"user\",\"content\":\"", *back = "\"}],\"max_tokens\":16";
    char head[1024], lines[512] = "";
    if (key) snprintf(lines, sizeof lines, "Authorization: Bearer %s\r\n", key);
    const char *tail = stream ? ",\"stream\":true}" : "}";
    long fixed = strlen(front) + strlen(back) + strlen(tail), pad = body_bytes > fixed ? body_bytes - fixed : 0;
    int length = snprintf(head, sizeof head, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nUser-Agent: relay_load\r\n"
        "Content-Type: application/json\r\n%sContent-Length: %ld\r\n\r\n", lines, fixed + pad);
    request = malloc(length + fixed + pad);
    char *at = mempcpy(request, head, length);
    at = mempcpy(at, front, strlen(front));
    memset(at, 'x', pad);
    at = mempcpy(at + pad, back, strlen(back));
    at = mempcpy(at, tail, strlen(tail));
    request_length = at - request;
}

int main(int argc, char **argv)
{
    if (argc < 6) { fprintf(stderr, "usage: relay_load PORT CONNECTIONS REQUESTS BODY_BYTES plain|stream [KEY]\n"); return 64; }
    port = atoi(argv[1]);
    int connections = atoi(argv[2]);
    wanted = atol(argv[3]);
    make_request(atol(argv[4]), !strcmp(argv[5], "stream"), argc > 6 ? argv[6] : NULL);
    latencies = malloc(wanted * sizeof *latencies);
    poller = epoll_create1(0);
    struct connection **all = calloc(connections, sizeof *all);
    for (int i = 0; i < connections; i++) open_it(all[i] = calloc(1, sizeof **all));
    double since_s = now_s();
    for (int i = 0; i < connections; i++) begin(all[i]);
    while (done < wanted) {
        struct epoll_event ready[256];
        int count = epoll_wait(poller, ready, 256, 30000);
        if (count == 0) { fprintf(stderr, "nothing moves: %ld of %ld\n", done, wanted); return 1; }
        for (int i = 0; i < count; i++) {
            struct connection *c = ready[i].data.ptr;
            if (c->fd < 0) continue;
            if (ready[i].events & EPOLLOUT) push(c);
            if (ready[i].events & ~EPOLLOUT) take(c);
        }
    }
    double took_s = now_s() - since_s;
    qsort(latencies, done, sizeof *latencies, by_size);
    printf("%ld %.6f %ld %.1f %.1f %.1f %.1f\n", done, took_s, errors, latencies[done / 2] * 1e6, latencies[done * 9 / 10] * 1e6,
        latencies[done * 99 / 100] * 1e6, latencies[done - 1] * 1e6);
    return errors != 0;
}
