/* Linux promises more memory than there is, and kills for it later: so the room is looked up before it is used.
 *
 * What is available on the host: proc_meminfo(5). What a container may use: https://docs.kernel.org/admin-guide/cgroup-v2.html
 * ("memory.max", "memory.current") and https://docs.kernel.org/admin-guide/cgroup-v1/memory.html. Pages of files count as
 * used there, and are given back where memory is wanted.
 */
#include "host_memory.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define UNKNOWN UINT64_MAX
enum { PATH_BYTES = 4096 };

/* A version of control groups: where its folders are, and the names of its files. */
struct hierarchy {
    const char *base, *limit, *used, *inactive, *active;
};
static const struct hierarchy VERSION_1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                           "total_inactive_file", "total_active_file"};
static const struct hierarchy VERSION_2 = {"/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file",
                                           "active_file"};

/* The number behind a name at the beginning of a line; `name` "": the first one of the file. */
static uint64_t number_in(const char *path, const char *name) {
    FILE *file = fopen(path, "re");
    char line[512];
    unsigned long long number = 0;
    uint64_t found = UNKNOWN;
    size_t length = strlen(name);
    while (file && found == UNKNOWN && fgets(line, sizeof line, file)) {
        const char *rest = line + length;
        if (strncmp(line, name, length) != 0 || (length && *rest != ' ' && *rest != ':'))
            continue;
        if (sscanf(rest + (length != 0), "%llu", &number) == 1)
            found = number;
    }
    if (file)
        fclose(file);
    return found;
}

static uint64_t number_below(const char *folder, const char *file, const char *name) {
    char path[PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    return number_in(path, name);
}

static uint64_t or_none(uint64_t number) { return number == UNKNOWN ? 0 : number; }

static uint64_t room_in_group(const char *folder, const struct hierarchy *names) {
    uint64_t limit = number_below(folder, names->limit, ""), used = number_below(folder, names->used, "");
    if (limit == UNKNOWN || used == UNKNOWN)
        return UNKNOWN;
    uint64_t files = or_none(number_below(folder, "memory.stat", names->inactive)) +
                     or_none(number_below(folder, "memory.stat", names->active));
    used = used > files ? used - files : 0;
    return limit > used ? limit - used : 0;
}

/* The least of a group and those above it. In a container the upmost is its own, whatever path is said. */
static uint64_t room_in_groups(const char *root, const struct hierarchy *names, const char *group) {
    char folder[PATH_BYTES];
    int base = snprintf(folder, sizeof folder, "%s%s", root, names->base);
    if (base < 0 || (size_t)base + strlen(group) >= sizeof folder)
        return UNKNOWN;
    strcat(folder, group);
    uint64_t least = UNKNOWN;
    for (char *end = folder + strlen(folder);; end = strrchr(folder + base, '/')) {
        if (end == NULL)
            return least;
        *end = '\0';
        uint64_t room = room_in_group(folder, names);
        least = room < least ? room : least;
    }
}

static uint64_t room_in_container(const char *root) {
    char path[PATH_BYTES], line[PATH_BYTES];
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "re");
    uint64_t least = UNKNOWN;
    while (file && fgets(line, sizeof line, file)) { /* "0::/path", or "4:memory:/path" */
        line[strcspn(line, "\n")] = '\0';
        char *group = strchr(line, '/');
        const char *kind = strchr(line, ':');
        if (group == NULL || kind == NULL || kind > group)
            continue;
        bool first = strncmp(kind, ":memory:", 8) == 0;
        if (!first && strncmp(kind, "::", 2) != 0)
            continue;
        uint64_t room = room_in_groups(root, first ? &VERSION_1 : &VERSION_2, group);
        least = room < least ? room : least;
    }
    if (file)
        fclose(file);
    return least;
}

uint64_t host_memory_room(const char *root) {
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    uint64_t free_kib = number_in(path, "MemAvailable"), host = UNKNOWN;
    if (free_kib != UNKNOWN)
        host = (free_kib + or_none(number_in(path, "SwapFree"))) * 1024;
    uint64_t container = room_in_container(root);
    return container < host ? container : host;
}
