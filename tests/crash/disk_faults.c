/* Disk calls that fail, lie or kill, for a process that this library is preloaded into.

   The file that RITORNELLO_DISK_FAULTS names says what to do, and is read again at each call, so
   that a test can change its mind: "<what> <from> <part of a path>". Of the calls that make durable
   what is at such a path, counted from the process's first, those from the number <from> on

   fail   return EIO, as a disk does that has lost something
   lie    return 0 and have done nothing
   kill   end the process, before anything was done
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WORD_BYTES = 16, PART_BYTES = 256, PATH_BYTES = 4096 };

static atomic_int seen;

/* Whether the call on this descriptor is to be left out; errno says with which answer. */
static int is_met(int descriptor, int *answer)
{
    const char *control = getenv("RITORNELLO_DISK_FAULTS");
    char text[WORD_BYTES + PART_BYTES], what[WORD_BYTES], part[PART_BYTES];
    char link[64], path[PATH_BYTES];
    int from;
    if (control == NULL)
        return 0;
    int file = open(control, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    if (length <= 0)
        return 0;
    text[length] = 0;
    if (sscanf(text, "%15s %d %255s", what, &from, part) != 3)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    if (strstr(path, part) == NULL || atomic_fetch_add(&seen, 1) + 1 < from)
        return 0;
    if (strcmp(what, "kill") == 0)
        kill(getpid(), SIGKILL);
    if (strcmp(what, "lie") == 0) {
        *answer = 0;
        return 1;
    }
    errno = EIO;
    *answer = -1;
    return 1;
}

int fsync(int descriptor)
{
    static int (*real)(int);
    int answer;
    if (is_met(descriptor, &answer))
        return answer;
    if (real == NULL)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return real(descriptor);
}

int fdatasync(int descriptor)
{
    static int (*real)(int);
    int answer;
    if (is_met(descriptor, &answer))
        return answer;
    if (real == NULL)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return real(descriptor);
}
