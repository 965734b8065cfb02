/* mock: an upstream in OpenAI's shapes, fast enough never to be what is measured.  One thread, epoll.
 *
 *     mock PORT
 *
 * The request's model says what is streamed: m-n<N>-d<D>[-j<J>] is N content events, D milliseconds apart on average
 * (each pause is even in [D/2, 3D/2]; 0 is no pause), J events to one write (default 1).  Each event is one HTTP chunk
 * and carries "~T" and 16 hex digits: CLOCK_MONOTONIC in ns when it was made.  Then come the finish, the usage where
 * stream_options.include_usage asked for it, and [DONE].  Where continuous_usage_stats did, each event has the usage so
 * far, as vLLM's.  A plain request is answered at once.
 *
 *     GET /-/finish   every open stream ends now, properly, with the usage of what it has sent
 *     GET /-/counts   what was generated so far, as JSON
 *
 * All other GETs are 404: nothing here tells which server this is.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS 65536
#define MAX_REQUEST_BYTES (4 << 20) /* the largest body sent is 1 MB */
#define MAX_JOINED 64
#define EVENT_BYTES 512 /* the longest event with its chunk framing is ~320 */
#define INPUT_TOKENS 42
#define PLAIN_OUTPUT_TOKENS 21

struct connection {
    int is_open, generation; /* a timer of a former generation is void */
    int is_streaming, asked_for_usage, asked_for_running_usage, keeps_alive, is_waiting, ending_is_sent;
    int events, sent, pause_ms, joined;
    char model[64];
    char *in;
    size_t in_len, in_size;
    char *out; /* what the socket did not take */
    size_t out_len, out_at;
};

struct timer {
    uint64_t at;
    int fd, generation;
};

static struct connection *connections[MAX_FDS];
static int epoll_fd;

static struct {
    unsigned long requests, streams, plain, input_tokens, output_tokens, hang_ups, hung_up_events;
} counts; /* streams, plain and the tokens are of answers that were written to the end */

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* An even fraction in [0, 1), the same in every run. */
static double chance(void) {
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 11) * (1.0 / 9007199254740992.0);
}

/* -- Whose turn it is: a heap of timers, and a queue of the streams without a pause ------------------------------ */

static struct timer *heap;
static int heap_len, heap_size;

static void push_timer(struct timer timer) {
    if (heap_len == heap_size) {
        heap_size = heap_size ? heap_size * 2 : 4096;
        heap = realloc(heap, heap_size * sizeof *heap);
    }
    int at = heap_len++;
    for (int parent; at && heap[parent = (at - 1) / 2].at > timer.at; at = parent) heap[at] = heap[parent];
    heap[at] = timer;
}

static struct timer pop_timer(void) {
    struct timer first = heap[0], last = heap[--heap_len];
    int at = 0;
    for (int child; (child = 2 * at + 1) < heap_len; at = child) {
        if (child + 1 < heap_len && heap[child + 1].at < heap[child].at) child++;
        if (last.at <= heap[child].at) break;
        heap[at] = heap[child];
    }
    heap[at] = last;
    return first;
}

static struct timer queue[MAX_FDS * 2];
static unsigned queue_head, queue_tail;

static void wait_for_turn(int fd) {
    struct connection *c = connections[fd];
    struct timer timer = {0, fd, c->generation};
    if (c->pause_ms) {
        timer.at = now_ns() + (uint64_t)(c->pause_ms * 1e6 * (0.5 + chance()));
        push_timer(timer);
    } else {
        queue[queue_tail++ % (MAX_FDS * 2)] = timer;
    }
    c->is_waiting = 1;
}

/* -- Writing ------------------------------------------------------------------------------------------------------ */

static void drop(int fd) {
    struct connection *c = connections[fd];
    if (c->is_streaming) {
        counts.hang_ups++;
        counts.hung_up_events += c->sent;
    }
    c->is_open = 0;
    c->generation++;
    free(c->in);
    free(c->out);
    c->in = c->out = NULL;
    close(fd);
}

static void watch(int fd, int for_writing, int operation) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (for_writing ? EPOLLOUT : 0), .data.fd = fd};
    epoll_ctl(epoll_fd, operation, fd, &event);
}

/* Write, or keep for later what the socket does not take.  0: the connection has gone. */
static int put(int fd, const char *bytes, size_t len) {
    struct connection *c = connections[fd];
    ssize_t taken = 0;
    if (!c->out_len) {
        taken = send(fd, bytes, len, MSG_NOSIGNAL);
        if (taken == (ssize_t)len) return 1;
        if (taken < 0 && errno != EAGAIN) {
            drop(fd);
            return 0;
        }
        if (taken < 0) taken = 0;
        watch(fd, 1, EPOLL_CTL_MOD);
    }
    c->out = realloc(c->out, c->out_len + len - taken);
    memcpy(c->out + c->out_len, bytes + taken, len - taken);
    c->out_len += len - taken;
    return 1;
}

static size_t as_chunk(char *out, const char *data, size_t len) {
    size_t at = sprintf(out, "%zx\r\n", len);
    memcpy(out + at, data, len);
    memcpy(out + at + len, "\r\n", 2);
    return at + len + 2;
}

#define CHUNK_HEAD                                                                                                     \
    "data: {\"id\":\"chatcmpl-7Qk2mZr0vXxJ\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"                \
    "\"model\":\"%s\",\"choices\":["

#define USAGE ",\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d}"

/* The end of an event with choices, after `sent` content events. */
static size_t end_event(struct connection *c, char *data, size_t len, int sent) {
    len += sprintf(data + len, "]");
    if (c->asked_for_running_usage) len += sprintf(data + len, USAGE, INPUT_TOKENS, sent, INPUT_TOKENS + sent);
    return len + sprintf(data + len, "}\n\n");
}

static size_t content_event(struct connection *c, char *out) {
    char data[EVENT_BYTES];
    size_t len = sprintf(
        data, CHUNK_HEAD "{\"index\":0,\"delta\":{\"content\":\" ~T%016llx\"},\"logprobs\":null,\"finish_reason\":null}",
        c->model, (unsigned long long)now_ns());
    return as_chunk(out, data, end_event(c, data, len, c->sent + 1));
}

static void answer_requests(int fd);

/* Finish, usage, [DONE] and the end of the body: each in a write of its own.  0: the connection has gone. */
static int put_ending(int fd) {
    struct connection *c = connections[fd];
    char data[EVENT_BYTES], chunk[EVENT_BYTES];
    size_t len = sprintf(data, CHUNK_HEAD "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}", c->model);
    if (!put(fd, chunk, as_chunk(chunk, data, end_event(c, data, len, c->sent)))) return 0;
    if (c->asked_for_usage) {
        len = sprintf(data, CHUNK_HEAD "]" USAGE "}\n\n", c->model, INPUT_TOKENS, c->sent, INPUT_TOKENS + c->sent);
        if (!put(fd, chunk, as_chunk(chunk, data, len))) return 0;
    }
    return put(fd, chunk, as_chunk(chunk, "data: [DONE]\n\n", 14)) && put(fd, "0\r\n\r\n", 5);
}

static void end_stream(int fd) {
    struct connection *c = connections[fd];
    c->is_streaming = 0;
    c->generation++; /* a timer may still be set, when the stream was told to finish */
    counts.streams++;
    counts.input_tokens += INPUT_TOKENS;
    counts.output_tokens += c->sent;
    if (c->keeps_alive)
        answer_requests(fd);
    else
        drop(fd);
}

/* One turn of a stream: its next events, or its end.  While the socket is full it waits for EPOLLOUT instead. */
static void step(int fd) {
    struct connection *c = connections[fd];
    c->is_waiting = 0;
    if (c->out_len) return;
    if (c->sent < c->events) {
        char chunks[MAX_JOINED * EVENT_BYTES];
        size_t len = 0;
        for (int i = 0; i < c->joined && c->sent < c->events; i++, c->sent++) len += content_event(c, chunks + len);
        if (put(fd, chunks, len) && !c->out_len) wait_for_turn(fd);
        return;
    }
    c->ending_is_sent = 1;
    if (put_ending(fd) && !c->out_len) end_stream(fd);
}

static void on_writable(int fd) {
    struct connection *c = connections[fd];
    ssize_t taken = send(fd, c->out + c->out_at, c->out_len - c->out_at, MSG_NOSIGNAL);
    if (taken < 0 && errno != EAGAIN) {
        drop(fd);
        return;
    }
    if (taken > 0) c->out_at += taken;
    if (c->out_at < c->out_len) return;
    c->out_len = c->out_at = 0;
    watch(fd, 0, EPOLL_CTL_MOD);
    if (c->is_streaming && c->ending_is_sent)
        end_stream(fd);
    else if (c->is_streaming && !c->is_waiting)
        wait_for_turn(fd);
    else if (!c->is_streaming && !c->keeps_alive)
        drop(fd);
}

static void finish_streams(void) {
    for (int fd = 0; fd < MAX_FDS; fd++) {
        struct connection *c = connections[fd];
        if (!c || !c->is_open || !c->is_streaming || c->ending_is_sent) continue;
        c->events = c->sent;
        if (!c->out_len) step(fd);
    }
}

/* -- Reading ------------------------------------------------------------------------------------------------------ */

static int number_after(const char *model, const char *mark, int otherwise) {
    const char *found = strstr(model, mark);
    return found ? atoi(found + strlen(mark)) : otherwise;
}

/* Whether the body has `"name": true`. */
static int is_true(const char *body, const char *name) {
    const char *at = strstr(body, name);
    if (!at) return 0;
    at += strlen(name);
    while (*at == ' ' || *at == ':') at++;
    return *at == 't';
}

static void read_model(struct connection *c, const char *body) {
    const char *at = strstr(body, "\"model\"");
    size_t len = 0;
    if (at) {
        at += 7;
        while (*at == ' ' || *at == ':' || *at == '"') at++;
        while (at[len] && at[len] != '"' && len < sizeof c->model - 1) len++;
        memcpy(c->model, at, len);
    }
    c->model[len] = 0;
}

static int put_json(int fd, const char *status, const char *body, size_t len) {
    char answer[2048];
    size_t total = sprintf(
        answer, "HTTP/1.1 %s\r\nserver: mock\r\ncontent-type: application/json\r\nx-request-id: req_0123456789abcdef\r\ncontent-length: %zu\r\n%s\r\n",
        status, len, connections[fd]->keeps_alive ? "" : "connection: close\r\n");
    memcpy(answer + total, body, len);
    return put(fd, answer, total + len);
}

/* The answer to a GET; 0: the connection has gone. */
static int answer_get(int fd, const char *head) {
    char body[512];
    if (!strncmp(head, "GET /-/finish ", 14)) {
        finish_streams();
        return put_json(fd, "200 OK", "{}", 2);
    }
    if (!strncmp(head, "GET /-/counts ", 14)) {
        size_t len = sprintf(body, "{\"requests\":%lu,\"streams\":%lu,\"plain\":%lu,\"input_tokens\":%lu,\"output_tokens\":%lu,\"hang_ups\":%lu,\"hung_up_events\":%lu}",
                             counts.requests, counts.streams, counts.plain, counts.input_tokens, counts.output_tokens,
                             counts.hang_ups, counts.hung_up_events);
        return put_json(fd, "200 OK", body, len);
    }
    return put_json(fd, "404 Not Found", "{\"error\":{\"message\":\"not here\"}}", 32);
}

static int answer_plain(int fd) {
    struct connection *c = connections[fd];
    char body[1024];
    size_t len = sprintf(
        body,
        "{\"id\":\"chatcmpl-7Qk2mZr0vXxJ\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"%s\",\"choices\":"
        "[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"The quick brown fox jumps over the lazy dog and then "
        "takes a long nap in the warm sun.\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":"
        "{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d,\"prompt_tokens_details\":{\"cached_tokens\":0}},"
        "\"system_fingerprint\":\"fp_mock\"}",
        c->model, INPUT_TOKENS, PLAIN_OUTPUT_TOKENS, INPUT_TOKENS + PLAIN_OUTPUT_TOKENS);
    counts.plain++;
    counts.input_tokens += INPUT_TOKENS;
    counts.output_tokens += PLAIN_OUTPUT_TOKENS;
    return put_json(fd, "200 OK", body, len);
}

static void start_stream(int fd) {
    static const char head[] = "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
                               "x-request-id: req_0123456789abcdef\r\ntransfer-encoding: chunked\r\n\r\n";
    struct connection *c = connections[fd];
    c->events = number_after(c->model, "-n", 100);
    c->pause_ms = number_after(c->model, "-d", 0);
    c->joined = number_after(c->model, "-j", 1);
    if (c->joined > MAX_JOINED) c->joined = MAX_JOINED;
    c->sent = c->ending_is_sent = 0;
    c->is_streaming = 1;
    if (put(fd, head, sizeof head - 1)) step(fd);
}

/* Take the whole requests out of what was read and answer them, until a stream is on. */
static void answer_requests(int fd) {
    struct connection *c = connections[fd];
    while (c->in_len && !c->is_streaming) {
        c->in[c->in_len] = 0;
        char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
        if (!end) return;
        *end = 0; /* look for fields in the head only */
        char *length = strcasestr(c->in, "\r\ncontent-length:");
        int is_chunked = strcasestr(c->in, "\r\ntransfer-encoding: chunked") != NULL;
        c->keeps_alive = !strcasestr(c->in, "\r\nconnection: close") && !strstr(c->in, " HTTP/1.0");
        *end = '\r';

        char *body = end + 4;
        size_t head_len = body - c->in, body_len = 0;
        if (is_chunked) { /* the marks looked for below survive the chunk sizes in between */
            char *last = memmem(body - 2, c->in_len - head_len + 2, "\r\n0\r\n\r\n", 7);
            if (!last) return;
            body_len = last + 7 - body;
        } else if (length) {
            body_len = strtoul(length + 17, NULL, 10);
        }
        if (c->in_len < head_len + body_len) return;

        counts.requests++;
        int goes_on;
        if (!strncmp(c->in, "GET ", 4)) {
            counts.requests--;
            goes_on = answer_get(fd, c->in);
        } else {
            char after = body[body_len];
            body[body_len] = 0;
            read_model(c, body);
            int wants_stream = is_true(body, "\"stream\"");
            c->asked_for_usage = is_true(body, "\"include_usage\"");
            c->asked_for_running_usage = is_true(body, "\"continuous_usage_stats\"");
            body[body_len] = after;
            if (wants_stream) c->is_streaming = 1;
            goes_on = wants_stream || answer_plain(fd);
        }
        if (!goes_on) return;
        c->in_len -= head_len + body_len;
        memmove(c->in, c->in + head_len + body_len, c->in_len);
        if (c->is_streaming) {
            start_stream(fd);
            return;
        }
        if (!c->keeps_alive) {
            if (!c->out_len) drop(fd);
            return;
        }
    }
}

static void on_readable(int fd) {
    struct connection *c = connections[fd];
    if (c->in_size - c->in_len < 2048) {
        if (c->in_size >= MAX_REQUEST_BYTES) {
            drop(fd);
            return;
        }
        c->in_size = c->in_size ? c->in_size * 4 : 2048;
        c->in = realloc(c->in, c->in_size + 1);
    }
    ssize_t got = recv(fd, c->in + c->in_len, c->in_size - c->in_len, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN)) {
        drop(fd); /* a half-close is a hang-up, too */
    } else if (got > 0) {
        c->in_len += got;
        answer_requests(fd);
    }
}

static void accept_some(int listener) {
    for (int i = 0; i < 64; i++) {
        int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        if (fd < 0) return;
        if (fd >= MAX_FDS) {
            close(fd);
            return;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (!connections[fd]) connections[fd] = calloc(1, sizeof(struct connection));
        int generation = connections[fd]->generation;
        *connections[fd] = (struct connection){.is_open = 1, .generation = generation};
        watch(fd, 0, EPOLL_CTL_ADD);
    }
}

static int is_current(struct timer timer) {
    struct connection *c = connections[timer.fd];
    return c->is_open && c->generation == timer.generation && c->is_streaming && !c->ending_is_sent;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: mock PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("mock");
        return 1;
    }
    epoll_fd = epoll_create1(0);
    watch(listener, 0, EPOLL_CTL_ADD);

    for (;;) {
        struct epoll_event events[512];
        struct timespec timeout = {0, 0}, *how_long = NULL;
        if (queue_head != queue_tail) {
            how_long = &timeout;
        } else if (heap_len) {
            uint64_t now = now_ns(), pause = heap[0].at > now ? heap[0].at - now : 0;
            timeout = (struct timespec){pause / 1000000000ull, pause % 1000000000ull};
            how_long = &timeout;
        }
        int ready = epoll_pwait2(epoll_fd, events, 512, how_long, NULL);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                accept_some(listener);
                continue;
            }
            if (connections[fd]->is_open && events[i].events & EPOLLOUT) on_writable(fd);
            if (connections[fd]->is_open && events[i].events & ~EPOLLOUT) on_readable(fd);
        }
        for (unsigned end = queue_tail; queue_head != end;) { /* one turn for each */
            struct timer timer = queue[queue_head++ % (MAX_FDS * 2)];
            if (is_current(timer)) step(timer.fd);
        }
        for (uint64_t now = now_ns(); heap_len && heap[0].at <= now;) {
            struct timer timer = pop_timer();
            if (is_current(timer)) step(timer.fd);
        }
    }
}
