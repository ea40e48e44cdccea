/* The C program: linked with the runtime, as llama-server is. Commands on stdin, an answer a line on stdout. */
#include <stddef.h>
#include <stdio.h>

void run_command(const char *line, char *answer, size_t room);

int main(void) {
    char line[512], answer[512];
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(line, sizeof line, stdin)) {
        run_command(line, answer, sizeof answer);
        puts(answer);
    }
    return 0;
}
