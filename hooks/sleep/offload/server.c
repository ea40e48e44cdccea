/* One thread, one connection at a time: a line in, a line out. */
#define _GNU_SOURCE
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "offload.h"

enum { LINE_BYTES = 1024, PATIENCE_S = 5, MAX_THREADS = 64, RETRY_MS = 100 };
#define MAX_CHUNK ((double)(64 << 20))
#define CHUNK_UNIT ((double)(64 << 10))

static int listener = -1;
static atomic_int asker = -1; /* the connection that is being served */
static char path[4096];

/* A number in a range; false: it is there and is none. */
static bool choose_number(const struct object *request, const char *name, double low, double high, double *value) {
    const struct member *member = json_member(request, name);
    if (member == NULL)
        return true;
    *value = member->number;
    return !member->is_text && member->number >= low && member->number <= high;
}

/* NULL, or what is wrong. */
static const char *choose(const struct object *request, struct choices *choices) {
    *choices = default_choices;
    double threads = choices->threads, chunk_bytes = (double)choices->chunk_bytes, verify = choices->verify;
    if (!choose_number(request, "threads", 0, MAX_THREADS, &threads))
        return "threads: a number from 0 to 64 is allowed";
    if (!choose_number(request, "chunk_bytes", CHUNK_UNIT, MAX_CHUNK, &chunk_bytes) ||
        (size_t)chunk_bytes % (size_t)CHUNK_UNIT != 0)
        return "chunk_bytes: multiples of 65536 up to 67108864 are allowed";
    if (!choose_number(request, "verify", 0, 1, &verify))
        return "verify: true or false is allowed";
    if (!choose_number(request, "idle_s", 0, 86400, &choices->idle_s))
        return "idle_s: seconds from 0 to 86400 are allowed";
    const struct member *zeros = json_member(request, "zeros");
    const char *how = zeros ? zeros->text : "gpu";
    if (strcmp(how, "gpu") != 0 && strcmp(how, "host") != 0 && strcmp(how, "none") != 0)
        return "zeros: \"gpu\", \"host\" or \"none\" is allowed";
    choices->zeros = *how == 'g' ? ZEROS_GPU : *how == 'h' ? ZEROS_HOST : ZEROS_NONE;
    choices->threads = (unsigned)threads;
    choices->chunk_bytes = (size_t)chunk_bytes;
    choices->verify = verify != 0;
    return NULL;
}

static void handle(const char *line, struct text *answer) {
    struct object request;
    struct choices choices;
    const char *wrong = json_read(line, &request);
    if (wrong == NULL)
        wrong = choose(&request, &choices);
    const struct member *member = wrong ? NULL : json_member(&request, "op");
    const char *op = member ? member->text : "";
    if (wrong == NULL && strcmp(op, "status") == 0)
        answer_status(answer);
    else if (wrong == NULL && strcmp(op, "offload") == 0)
        answer_offload(&choices, answer);
    else if (wrong == NULL && strcmp(op, "reload") == 0)
        answer_reload(&choices, answer);
    else
        answer_failure("bad_request", wrong ? wrong : "op: \"status\", \"offload\" or \"reload\" is allowed", answer);
}

/* Read up to the end of a line; false: there was none in time, or too much. */
static bool read_line(int connection, char *line) {
    size_t length = 0;
    while (length < LINE_BYTES - 1) {
        ssize_t got = read(connection, line + length, LINE_BYTES - 1 - length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        length += (size_t)got;
        line[length] = '\0';
        char *end = memchr(line, '\n', length);
        if (end) {
            *end = '\0';
            return strlen(line) == (size_t)(end - line); /* no NUL within */
        }
    }
    return false;
}

static void write_all(int connection, const char *data, size_t bytes) {
    while (bytes) {
        ssize_t sent = send(connection, data, bytes, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return; /* the asker is gone; what it asked for is done all the same */
        data += sent;
        bytes -= (size_t)sent;
    }
}

static bool may_ask(int connection) {
    struct ucred peer;
    socklen_t bytes = sizeof peer;
    return getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && (peer.uid == geteuid() || peer.uid == 0);
}

static void serve_one(int connection) {
    const struct timeval patience = {.tv_sec = PATIENCE_S};
    setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    char line[LINE_BYTES];
    struct text answer = {0};
    if (!may_ask(connection))
        return;
    if (read_line(connection, line))
        handle(line, &answer);
    else
        answer_failure("bad_request", "a line of JSON of at most 1,023 bytes is expected within 5 s", &answer);
    text_add(&answer, "\n");
    if (!answer.failed)
        write_all(connection, answer.data, answer.length);
    free(answer.data);
}

static void *serve(void *unused) {
    (void)unused;
    prctl(PR_SET_NAME, "warmboot-gpu");
    for (;;) {
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection >= 0) {
            atomic_store(&asker, connection);
            serve_one(connection);
            atomic_store(&asker, -1);
            close(connection);
            give_back();
        } else if (errno != EINTR && errno != ECONNABORTED)
            poll(NULL, 0, RETRY_MS); /* no descriptor is free: do not spin */
    }
    return NULL;
}

/* A path that fits into an address, whatever the folder's length. */
static bool bind_to(int descriptor, const char *folder) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int beneath = -1;
    if (strlen(path) < sizeof address.sun_path)
        memcpy(address.sun_path, path, strlen(path) + 1);
    else {
        beneath = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
        snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/%d.sock", beneath, (int)getpid());
    }
    unlink(path); /* of a process that had our number before */
    bool bound = bind(descriptor, (const struct sockaddr *)&address, sizeof address) == 0;
    if (beneath >= 0)
        close(beneath);
    return bound && chmod(path, 0600) == 0;
}

bool server_start(const char *folder) {
    snprintf(path, sizeof path, "%s/%d.sock", folder, (int)getpid());
    int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (descriptor < 0)
        return false;
    listener = descriptor;
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    bool started = bind_to(descriptor, folder) && listen(descriptor, 8) == 0;
    if (started) {
        /* The server's signals are for its own threads. */
        pthread_sigmask(SIG_SETMASK, &all, &before);
        errno = pthread_create(&thread, NULL, serve, NULL);
        started = errno == 0;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (started)
        pthread_detach(thread);
    else {
        int why = errno;
        unlink(path);
        close(descriptor);
        listener = -1;
        errno = why;
    }
    return started;
}

void server_forget(void) {
    if (listener >= 0)
        close(listener);
    if (asker >= 0)
        close(asker); /* or whoever asked would wait for the child too, should we die */
    listener = asker = -1;
    path[0] = '\0';
}

__attribute__((destructor)) static void remove_socket(void) {
    if (listener >= 0 && path[0])
        unlink(path);
}
