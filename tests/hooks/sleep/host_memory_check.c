/* Says how much memory there is below a folder that looks like the root of a file system. */
#include "host_memory.c"

int main(int count, char **arguments) {
    for (int i = 1; i < count; i++)
        printf("%llu\n", (unsigned long long)host_memory_room(arguments[i]));
    return 0;
}
