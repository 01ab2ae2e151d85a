/*
 * Small workloads with little overhead of their own. Prints the seconds that the measured part took.
 *
 * probe stat LIST TIMES            stat each path of LIST, TIMES times
 * probe missing LIST TIMES         stat a name beside each path that is not there
 * probe open LIST TIMES            open, read up to 4 KiB and close
 * probe append FILE COUNT          open for appending, write 1 byte, close, COUNT times
 * probe churn DIR COUNT PROCESSES  each process: create, write, rename, stat, unlink, COUNT times
 *
 * Paths of LIST are relative to the working directory, one a line.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) {
    fprintf(stderr, "probe: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static char **lines(const char *path, size_t *count, const char *suffix) {
    FILE *file = fopen(path, "r");
    size_t room = 1 << 10, used = 0, size = 0;
    char **list = malloc(room * sizeof *list), *line = NULL;
    ssize_t len;
    if (!file || !list)
        fail(path);
    while ((len = getline(&line, &size, file)) > 0) {
        if (line[len - 1] == '\n')
            line[--len] = 0;
        if (used == room && !(list = realloc(list, (room *= 2) * sizeof *list)))
            fail("realloc");
        char *name = malloc((size_t)len + strlen(suffix) + 1);
        if (!name)
            fail("malloc");
        strcpy(name, line);
        strcat(name, suffix);
        list[used++] = name;
    }
    free(line);
    fclose(file);
    *count = used;
    return list;
}

static void churn(const char *dir, long count) {
    char from[4096], to[4096];
    struct stat st;
    for (long i = 0; i < count; i++) {
        snprintf(from, sizeof from, "%s/new-%ld-%ld", dir, (long)getpid(), i);
        snprintf(to, sizeof to, "%s/old-%ld-%ld", dir, (long)getpid(), i);
        int fd = open(from, O_CREAT | O_EXCL | O_WRONLY, 0644);
        if (fd < 0 || write(fd, from, 100) != 100 || close(fd))
            fail(from);
        if (rename(from, to) || stat(to, &st) || unlink(to))
            fail(to);
    }
}

int main(int argc, char **argv) {
    if (argc < 4)
        return fprintf(stderr, "probe: too few arguments\n"), 2;
    const char *what = argv[1];
    long times = atol(argv[3]);
    struct stat st;
    double begin;
    if (!strcmp(what, "append")) {
        begin = now();
        for (long i = 0; i < times; i++) {
            int fd = open(argv[2], O_WRONLY | O_APPEND);
            if (fd < 0 || write(fd, "x", 1) != 1 || close(fd))
                fail(argv[2]);
        }
    } else if (!strcmp(what, "churn")) {
        int processes = argc > 4 ? atoi(argv[4]) : 1, status;
        begin = now();
        for (int p = 0; p < processes; p++) {
            pid_t pid = fork();
            if (pid < 0)
                fail("fork");
            if (pid == 0) {
                churn(argv[2], times);
                _exit(0);
            }
        }
        while (wait(&status) > 0)
            if (status)
                return 1;
    } else {
        size_t count;
        int missing = !strcmp(what, "missing");
        char **list = lines(argv[2], &count, missing ? ".missing" : ""), buffer[4096];
        begin = now();
        for (long t = 0; t < times; t++)
            for (size_t i = 0; i < count; i++) {
                if (missing) {
                    if (stat(list[i], &st) == 0 || errno != ENOENT)
                        fail(list[i]);
                } else if (!strcmp(what, "stat")) {
                    if (stat(list[i], &st))
                        fail(list[i]);
                } else {
                    int fd = open(list[i], O_RDONLY);
                    if (fd < 0 || read(fd, buffer, sizeof buffer) < 0 || close(fd))
                        fail(list[i]);
                }
            }
    }
    printf("%.9f\n", now() - begin);
    return 0;
}
