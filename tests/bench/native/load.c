/* load: clients of a chat endpoint, their count of what they got, and what the proxy used meanwhile.  One thread, epoll.
 *
 *     load --port PORT --model MODEL --connections N --seconds S [--stream] ...        (all options: `options` below)
 *
 * Warms up, measures for a window, then lets every answer end (and has the mock end its streams), so that the totals
 * can be compared with the proxy's books.  Prints one JSON object: figures of the window, and `total` of the whole run.
 * The CPU is the run time of all threads of the processes in --pids, read at both edges of the window.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_PENDING 64              /* connections that are opened at a time, before their first event */
#define DRAIN_NS 20000000000ull     /* the longest wait for the last answers */
#define FINISH_EVERY_NS 200000000ull
#define MAX_ERRORS 1000             /* a proxy that is broken, or gone */
#define MAX_PIDS 64

static struct {
    int port, mock_port, connections, is_stream, asks_no_usage, is_get, reconnects, hangs_up_after, holds, sources, body_bytes;
    double seconds, warm_up_s, rate, ramp_limit_s;
    const char *path, *model, *key;
    int pids[MAX_PIDS], pids_len;
} set = {.connections = 16, .sources = 1, .body_bytes = 500, .seconds = 3, .warm_up_s = 0.5, .ramp_limit_s = 20,
         .path = "/v1/chat/completions", .model = "m", .key = "none"};

static const struct option options[] = {
    {"port", 1, 0, 'P'},           /* of the proxy, on 127.0.0.1 */
    {"mock-port", 1, 0, 'M'},      /* of the mock, which is told to finish its streams at the end */
    {"path", 1, 0, 'p'},
    {"model", 1, 0, 'm'},          /* see mock.c */
    {"key", 1, 0, 'k'},
    {"stream", 0, 0, 's'},
    {"ask-no-usage", 0, 0, 'u'},   /* streams without stream_options.include_usage */
    {"get", 0, 0, 'g'},            /* GET instead of POST, without a body */
    {"connections", 1, 0, 'c'},
    {"seconds", 1, 0, 'd'},        /* the window */
    {"warm-up", 1, 0, 'w'},
    {"rate", 1, 0, 'r'},           /* open loop: requests per second in all; times count from when each was due */
    {"reconnect", 0, 0, 'n'},      /* a new connection for each request */
    {"hang-up-after", 1, 0, 'e'},  /* close after so many events */
    {"hold", 0, 0, 'h'},           /* the window opens when all streams are on; none is replaced */
    {"ramp-limit", 1, 0, 'R'},     /* with --hold: go on after so many seconds with the streams there are */
    {"sources", 1, 0, 'S'},        /* spread the connections over 127.0.0.1, 127.0.0.2, ...: ports are finite */
    {"body-bytes", 1, 0, 'b'},
    {"pids", 1, 0, 'i'},           /* 12,13: the proxy's processes */
    {0, 0, 0, 0}};

enum phase { WARM_UP, WINDOW, DRAIN };
enum state { CLOSED, CONNECTING, SENDING, HEAD, BODY, IDLE };
enum framing { SIZE, EXTENSION, DATA, DATA_END, TRAILER };

struct connection {
    int fd;
    enum state state;
    enum framing framing;
    int status, is_chunked, closes, is_done, trailer_len, events;
    int64_t left; /* bytes of the chunk or of the body; -1: until the connection closes */
    size_t sent;  /* of the request */
    uint64_t asked_at;
    int mark_at, done_at; /* how far into "~T<16 hex>" and "[DONE]" the last bytes were */
    uint64_t mark;
    size_t head_len;
    char head[4096];
};

struct times {
    uint32_t *in_100ns;
    size_t len, size;
};

static struct connection *connections;
static enum phase phase = WARM_UP;
static int epoll_fd, started, pending;
static char *request;
static size_t request_len;
static struct times first_event_times, event_times, answer_times;
static struct {
    unsigned long requests, events, bytes, hang_ups, late;
} window;
static struct {
    unsigned long requests, dones, finished_events, errors, not_200, without_done, hang_ups, connections, last_not_200;
} total;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* -- What the proxy uses ------------------------------------------------------------------------------------------ */

static uint64_t cpu_ns(void) {
    uint64_t sum = 0;
    char path[320];
    for (int i = 0; i < set.pids_len; i++) {
        sprintf(path, "/proc/%d/task", set.pids[i]);
        DIR *tasks = opendir(path);
        if (!tasks) continue;
        for (struct dirent *task; (task = readdir(tasks));) {
            if (task->d_name[0] == '.') continue;
            sprintf(path, "/proc/%d/task/%s/schedstat", set.pids[i], task->d_name);
            FILE *file = fopen(path, "r");
            unsigned long long ran = 0;
            if (file && fscanf(file, "%llu", &ran) == 1) sum += ran;
            if (file) fclose(file);
        }
        closedir(tasks);
    }
    return sum;
}

static uint64_t own_cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static long rss_kib(void) {
    long sum = 0;
    for (int i = 0; i < set.pids_len; i++) {
        char line[256];
        sprintf(line, "/proc/%d/status", set.pids[i]);
        FILE *file = fopen(line, "r");
        while (file && fgets(line, sizeof line, file))
            if (!strncmp(line, "VmRSS:", 6)) sum += atol(line + 6);
        if (file) fclose(file);
    }
    return sum;
}

/* -- Times -------------------------------------------------------------------------------------------------------- */

static void note(struct times *times, uint64_t ns) {
    if (phase != WINDOW) return;
    if (times->len == times->size) {
        times->size = times->size ? times->size * 2 : 65536;
        times->in_100ns = realloc(times->in_100ns, times->size * sizeof *times->in_100ns);
    }
    uint64_t value = ns / 100;
    times->in_100ns[times->len++] = value > UINT32_MAX ? UINT32_MAX : value;
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static double quantile_us(struct times *times, double part) {
    size_t at = part * times->len;
    return times->in_100ns[at < times->len ? at : times->len - 1] / 10.0;
}

static void print_times(const char *name, struct times *times) {
    printf(",\"%s\":", name);
    if (!times->len) {
        printf("null");
        return;
    }
    qsort(times->in_100ns, times->len, sizeof *times->in_100ns, by_size);
    printf("{\"count\":%zu,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}", times->len, quantile_us(times, .5),
           quantile_us(times, .9), quantile_us(times, .99), quantile_us(times, 1));
}

/* -- A connection, in the order of time --------------------------------------------------------------------------- */

static void close_connection(struct connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->state = CLOSED;
}

static void watch(struct connection *c, unsigned events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, operation, c->fd, &event);
}

static void connect_it(struct connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) {
        perror("load: socket");
        exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (set.sources > 1) {
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        struct sockaddr_in source = {.sin_family = AF_INET,
                                     .sin_addr.s_addr = htonl(INADDR_LOOPBACK + total.connections % set.sources)};
        if (bind(c->fd, (struct sockaddr *)&source, sizeof source)) perror("load: bind");
    }
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(set.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    total.connections++;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
        perror("load: connect");
        exit(1);
    }
    watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
    c->state = CONNECTING;
}

static void fail(struct connection *c);

static void send_some(struct connection *c) {
    ssize_t taken = send(c->fd, request + c->sent, request_len - c->sent, MSG_NOSIGNAL);
    if (taken < 0 && errno != EAGAIN) {
        fail(c);
        return;
    }
    if (taken > 0) c->sent += taken;
    if (c->sent < request_len) {
        if (c->state != SENDING) watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
        c->state = SENDING;
        return;
    }
    if (c->state == SENDING) watch(c, EPOLLIN, EPOLL_CTL_MOD);
    c->state = HEAD;
}

static void ask(struct connection *c, uint64_t due_at) {
    c->asked_at = due_at;
    c->sent = c->head_len = 0;
    c->events = c->is_done = c->mark_at = c->done_at = 0;
    pending++;
    if (c->state == CLOSED)
        connect_it(c);
    else
        send_some(c);
}

static void ask_again(struct connection *c, uint64_t now) {
    if (phase != DRAIN && !set.rate && !set.holds) ask(c, now);
}

static void on_connected(struct connection *c) {
    int error = 0;
    socklen_t len = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len);
    if (error) {
        fail(c);
        return;
    }
    watch(c, EPOLLIN, EPOLL_CTL_MOD);
    send_some(c);
}

/* The connection broke where no answer may end. */
static void fail(struct connection *c) {
    if (!c->events) pending--;
    close_connection(c);
    if (++total.errors > MAX_ERRORS) {
        fprintf(stderr, "load: too many errors\n");
        exit(1);
    }
    ask_again(c, now_ns());
}

/* A content event is complete at its mark's end; 1: it was the last before the hang-up. */
static int on_event(struct connection *c, uint64_t now) {
    if (!c->events++) {
        pending--;
        note(&first_event_times, now - c->asked_at);
    }
    if (phase == WINDOW) window.events++;
    note(&event_times, now - c->mark);
    return phase != DRAIN && c->events == set.hangs_up_after;
}

static int hex(char digit) { return digit <= '9' ? digit - '0' : (digit | 32) - 'a' + 10; }

/* Look for marks and for [DONE] in data of the body, however it is cut; 1: hang up now. */
static int read_data(struct connection *c, const char *data, int64_t len, uint64_t now) {
    for (int64_t i = 0; i < len; i++) {
        char byte = data[i];
        if (c->mark_at >= 2) {
            c->mark = c->mark << 4 | hex(byte);
            if (++c->mark_at == 18) {
                c->mark_at = 0;
                if (on_event(c, now)) return 1;
            }
        } else if (byte == (c->mark_at ? 'T' : '~')) {
            c->mark_at++;
            c->mark = 0;
        } else {
            c->mark_at = 0;
        }
        c->done_at = byte == "[DONE]"[c->done_at] ? c->done_at + 1 : byte == '[';
        if (c->done_at == 6) {
            c->is_done = 1;
            c->done_at = 0;
        }
    }
    return 0;
}

enum reading { MORE, COMPLETE, HANG_UP };

static enum reading read_body(struct connection *c, const char *bytes, int64_t len, uint64_t now) {
    if (!c->is_chunked) {
        if (c->left >= 0 && len > c->left) len = c->left;
        if (read_data(c, bytes, len, now)) return HANG_UP;
        if (c->left < 0) return MORE;
        c->left -= len;
        return c->left ? MORE : COMPLETE;
    }
    for (int64_t i = 0; i < len;) {
        char byte = bytes[i];
        switch (c->framing) {
        case SIZE:
        case EXTENSION:
            if (byte == '\n') {
                c->framing = c->left ? DATA : TRAILER;
                c->trailer_len = 0;
            } else if (byte == ';') {
                c->framing = EXTENSION;
            } else if (byte != '\r' && c->framing == SIZE) {
                c->left = c->left << 4 | hex(byte);
            }
            i++;
            break;
        case DATA: {
            int64_t part = len - i < c->left ? len - i : c->left;
            if (read_data(c, bytes + i, part, now)) return HANG_UP;
            i += part;
            c->left -= part;
            if (!c->left) c->framing = DATA_END;
            break;
        }
        case DATA_END:
            if (byte == '\n') c->framing = SIZE;
            i++;
            break;
        case TRAILER: /* the body ends at the empty line */
            if (byte == '\n' && !c->trailer_len) return COMPLETE;
            if (byte == '\n')
                c->trailer_len = 0;
            else if (byte != '\r')
                c->trailer_len++;
            i++;
            break;
        }
    }
    return MORE;
}

/* Parse the head when it is whole; the number of the given bytes that belong to it, or -1 when it is not. */
static int64_t read_head(struct connection *c, const char *bytes, size_t len) {
    size_t room = sizeof c->head - 1 - c->head_len, before = c->head_len;
    memcpy(c->head + before, bytes, len < room ? len : room);
    c->head_len += len < room ? len : room;
    c->head[c->head_len] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) return -1;
    end[2] = 0;
    char *length = strcasestr(c->head, "\r\ncontent-length:");
    c->status = atoi(c->head + 9);
    c->is_chunked = strcasestr(c->head, "\r\ntransfer-encoding: chunked") != NULL;
    c->left = c->is_chunked ? 0 : length ? atoll(length + 17) : -1;
    c->closes = strcasestr(c->head, "\r\nconnection: close") || !strncmp(c->head, "HTTP/1.0", 8);
    c->framing = SIZE;
    c->state = BODY;
    return end + 4 - c->head - before;
}

static void on_complete(struct connection *c, uint64_t now) {
    if (!c->events) pending--;
    if (c->status != 200) {
        total.not_200++;
        total.last_not_200 = c->status;
    } else {
        total.requests++;
        total.dones += c->is_done;
        total.finished_events += c->events;
        total.without_done += set.is_stream && !c->is_done;
        if (phase == WINDOW) window.requests++;
        note(&answer_times, now - c->asked_at);
    }
    if (total.not_200 > MAX_ERRORS) {
        fprintf(stderr, "load: too many answers with status %d\n", c->status);
        exit(1);
    }
    c->state = IDLE;
    if (c->closes || set.reconnects) close_connection(c);
    ask_again(c, now);
}

static void on_readable(struct connection *c) {
    static char bytes[262144];
    ssize_t got = recv(c->fd, bytes, sizeof bytes, 0);
    uint64_t now = now_ns();
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        int may_end = c->state == BODY && !c->is_chunked && c->left < 0 && got == 0;
        c->closes = 1;
        if (may_end)
            on_complete(c, now);
        else if (c->state == IDLE)
            close_connection(c);
        else
            fail(c);
        return;
    }
    if (phase == WINDOW) window.bytes += got;
    int64_t used = 0;
    if (c->state == HEAD || c->state == SENDING) {
        used = read_head(c, bytes, got);
        if (used < 0) return;
        if (!c->is_chunked && c->left == 0) {
            on_complete(c, now);
            return;
        }
    }
    if (c->state != BODY || used == got) return;
    switch (read_body(c, bytes + used, got - used, now)) {
    case MORE:
        break;
    case COMPLETE:
        on_complete(c, now);
        break;
    case HANG_UP:
        total.hang_ups++;
        if (phase == WINDOW) window.hang_ups++;
        close_connection(c);
        ask_again(c, now);
    }
}

/* -- The run ------------------------------------------------------------------------------------------------------ */

/* Start what is due; when to look again, at the latest. */
static uint64_t ask_what_is_due(uint64_t now) {
    static uint64_t due_at;
    static int turn;
    if (phase == DRAIN) return now + FINISH_EVERY_NS;
    if (!set.rate) {
        while (started < set.connections && pending < MAX_PENDING) ask(&connections[started++], now_ns());
        return now + 1000000000ull;
    }
    if (!due_at) due_at = now;
    for (; due_at <= now; due_at += 1e9 / set.rate) {
        int i = 0;
        struct connection *c;
        do c = &connections[turn = (turn + 1) % set.connections];
        while (c->state != IDLE && c->state != CLOSED && ++i < set.connections);
        if (i == set.connections) { /* all are busy: it stays due, and its time runs */
            window.late += phase == WINDOW;
            return now + 200000;
        }
        ask(c, due_at);
    }
    return due_at;
}

static void have_streams_finished(void) {
    static const char get[] = "GET /-/finish HTTP/1.1\r\nHost: mock\r\nConnection: close\r\n\r\n";
    if (!set.mock_port) return;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(set.mock_port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (!connect(fd, (struct sockaddr *)&address, sizeof address) && send(fd, get, sizeof get - 1, MSG_NOSIGNAL) > 0) {
        char answer[256];
        recv(fd, answer, sizeof answer, 0);
    }
    close(fd);
}

static int count(enum state from, enum state to) {
    int sum = 0;
    for (int i = 0; i < set.connections; i++) sum += connections[i].state >= from && connections[i].state <= to;
    return sum;
}

static void build_request(void) {
    char *body = malloc(set.body_bytes + 2048);
    size_t len = 0;
    if (!set.is_get) {
        len = sprintf(body, "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"},{\"role\":\"user\",\"content\":", set.model);
        if (set.body_bytes > 100000) { /* an image */
            len += sprintf(body + len, "[{\"type\":\"text\",\"text\":\"What is this?\"},{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,");
            for (; len < (size_t)set.body_bytes; len++) body[len] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[len * 7 % 64];
            len += sprintf(body + len, "\"}}]");
        } else {
            body[len++] = '"';
            while (len + 150 < (size_t)set.body_bytes) len += sprintf(body + len, "tell me a long story ");
            body[len++] = '"';
        }
        len += sprintf(body + len, "}],\"temperature\":0.7,\"max_tokens\":4096%s%s}", set.is_stream ? ",\"stream\":true" : "",
                       set.is_stream && !set.asks_no_usage ? ",\"stream_options\":{\"include_usage\":true}" : "");
    }
    request = malloc(len + 2048);
    request_len = sprintf(request,
                          "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: identity\r\nConnection: %s\r\nAccept: application/json\r\n"
                          "User-Agent: OpenAI/Python 2.8.0\r\nX-Stainless-Lang: python\r\nX-Stainless-Package-Version: 2.8.0\r\n"
                          "X-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nAuthorization: Bearer %s\r\n",
                          set.is_get ? "GET" : "POST", set.path, set.port, set.reconnects ? "close" : "keep-alive", set.key);
    if (!set.is_get) request_len += sprintf(request + request_len, "Content-Type: application/json\r\nContent-Length: %zu\r\n", len);
    request_len += sprintf(request + request_len, "\r\n");
    memcpy(request + request_len, body, len);
    request_len += len;
    free(body);
}

static void read_options(int argc, char **argv) {
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (option) {
        case 'P': set.port = atoi(optarg); break;
        case 'M': set.mock_port = atoi(optarg); break;
        case 'p': set.path = optarg; break;
        case 'm': set.model = optarg; break;
        case 'k': set.key = optarg; break;
        case 's': set.is_stream = 1; break;
        case 'u': set.asks_no_usage = 1; break;
        case 'g': set.is_get = 1; break;
        case 'c': set.connections = atoi(optarg); break;
        case 'd': set.seconds = atof(optarg); break;
        case 'w': set.warm_up_s = atof(optarg); break;
        case 'r': set.rate = atof(optarg); break;
        case 'n': set.reconnects = 1; break;
        case 'e': set.hangs_up_after = atoi(optarg); break;
        case 'h': set.holds = 1; break;
        case 'R': set.ramp_limit_s = atof(optarg); break;
        case 'S': set.sources = atoi(optarg); break;
        case 'b': set.body_bytes = atoi(optarg); break;
        case 'i':
            for (char *pid = strtok(optarg, ","); pid && set.pids_len < MAX_PIDS; pid = strtok(NULL, ","))
                set.pids[set.pids_len++] = atoi(pid);
            break;
        default: exit(2);
        }
    if (!set.port) {
        fprintf(stderr, "load: --port is needed\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    build_request();
    epoll_fd = epoll_create1(0);
    connections = calloc(set.connections, sizeof *connections);
    for (int i = 0; i < set.connections; i++) connections[i].fd = -1;

    long rss_before = rss_kib(), rss_after = 0;
    uint64_t began_at = now_ns(), opens_at = set.holds ? UINT64_MAX : began_at + set.warm_up_s * 1e9;
    uint64_t closes_at = 0, opened_at = 0, closed_at = 0, cpu_before = 0, cpu_after = 0, own_before = 0, own_after = 0, finish_at = 0;
    int open = 0;
    for (;;) {
        uint64_t now = now_ns();
        if (phase == WARM_UP && opens_at == UINT64_MAX) {
            int all_on = started == set.connections && !pending;
            if (all_on || now - began_at > set.ramp_limit_s * 1e9) opens_at = now + set.warm_up_s * 1e9;
        }
        if (phase == WARM_UP && now >= opens_at) {
            own_before = own_cpu_ns();
            cpu_before = cpu_ns();
            opened_at = now_ns();
            closes_at = opened_at + set.seconds * 1e9;
            phase = WINDOW;
        }
        if (phase == WINDOW && now >= closes_at) {
            closed_at = now_ns();
            cpu_after = cpu_ns();
            own_after = own_cpu_ns();
            rss_after = rss_kib();
            for (int i = 0; i < set.connections; i++) open += connections[i].state == BODY && connections[i].events;
            phase = DRAIN;
        }
        if (phase == DRAIN) {
            if (!count(CONNECTING, BODY) || now > closed_at + DRAIN_NS) break;
            if (now >= finish_at) {
                have_streams_finished();
                finish_at = now_ns() + FINISH_EVERY_NS;
            }
        }
        uint64_t wake_at = ask_what_is_due(now), edge_at = phase == WARM_UP ? opens_at : phase == WINDOW ? closes_at : wake_at;
        if (edge_at < wake_at) wake_at = edge_at;
        now = now_ns();
        uint64_t pause = wake_at > now ? wake_at - now : 0;
        struct timespec timeout = {pause / 1000000000ull, pause % 1000000000ull};
        struct epoll_event events[512];
        int ready = epoll_pwait2(epoll_fd, events, 512, &timeout, NULL);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (c->state == CONNECTING)
                on_connected(c);
            else if (c->state == SENDING && events[i].events & EPOLLOUT)
                send_some(c);
            else if (c->state != CLOSED)
                on_readable(c);
        }
    }

    double window_s = (closed_at - opened_at) / 1e9;
    printf("{\"window_s\":%.4f,\"requests\":%lu,\"events\":%lu,\"bytes\":%lu,\"hang_ups\":%lu,\"late\":%lu,\"cpu_s\":%.6f,\"load_cpu_s\":%.6f,"
           "\"rss_before_kib\":%ld,\"rss_kib\":%ld,\"open\":%d",
           window_s, window.requests, window.events, window.bytes, window.hang_ups, window.late, (cpu_after - cpu_before) / 1e9,
           (own_after - own_before) / 1e9, rss_before, rss_after, open);
    print_times("first_event_us", &first_event_times);
    print_times("event_us", &event_times);
    print_times("answer_us", &answer_times);
    printf(",\"total\":{\"requests\":%lu,\"dones\":%lu,\"finished_events\":%lu,\"errors\":%lu,\"not_200\":%lu,\"last_not_200\":%lu,"
           "\"without_done\":%lu,\"hang_ups\":%lu,\"connections\":%lu,\"unfinished\":%d}}\n",
           total.requests, total.dones, total.finished_events, total.errors, total.not_200, total.last_not_200, total.without_done,
           total.hang_ups, total.connections, count(CONNECTING, BODY));
    return 0;
}
