/*
 * c-floor: the least that an echo server on epoll can cost.
 *
 *	c-floor ADDRESS PORT PROCESSES
 *
 * Every process waits on its own epoll for the one listener all of them
 * share, and on its connections. A wakeup is one recv(2) into one buffer of
 * 64 KiB and one send(2) out of it. What a short write leaves over is kept
 * with the connection, which is not read again before all of it is gone: so
 * memory is bounded by one buffer a connection. There are no timers, no
 * callbacks and no accounting: what a server above this spends is its own.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 65536, EVENTS = 256, BACKLOG = 4096 };

struct rest {		/* what is still to be written to a connection */
	char *data;
	size_t from, to;
};

static struct rest *rests;	/* by descriptor */
static int limit;		/* descriptors are below this */
static int ep;
static char buffer[BUFFER];

static void watch(int op, int fd, unsigned events)
{
	struct epoll_event e = { .events = events, .data.fd = fd };
	if (epoll_ctl(ep, op, fd, &e) < 0)
		err(1, "epoll_ctl");
}

static void drop(int fd)
{
	free(rests[fd].data);
	rests[fd] = (struct rest){ 0 };
	close(fd);
}

static void accept_one(int listener)
{
	/* One a wakeup: the others of the processes get their share of a rush. */
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0)
		return;
	if (fd >= limit) {
		close(fd);
		return;
	}
	watch(EPOLL_CTL_ADD, fd, EPOLLIN);
}

static void echo(int fd)
{
	ssize_t n = recv(fd, buffer, BUFFER, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		drop(fd);
		return;
	}
	ssize_t w = send(fd, buffer, n, MSG_NOSIGNAL);
	if (w == n)
		return;
	if (w < 0 && errno != EAGAIN && errno != EINTR) {
		drop(fd);
		return;
	}
	if (w < 0)
		w = 0;
	struct rest *r = &rests[fd];
	r->from = 0;
	r->to = n - w;
	r->data = malloc(r->to);
	if (!r->data)
		err(1, "malloc");
	memcpy(r->data, buffer + w, r->to);
	watch(EPOLL_CTL_MOD, fd, EPOLLOUT);
}

static void flush(int fd)
{
	struct rest *r = &rests[fd];
	ssize_t w = send(fd, r->data + r->from, r->to - r->from, MSG_NOSIGNAL);
	if (w < 0) {
		if (errno != EAGAIN && errno != EINTR)
			drop(fd);
		return;
	}
	r->from += w;
	if (r->from < r->to)
		return;
	free(r->data);
	*r = (struct rest){ 0 };
	watch(EPOLL_CTL_MOD, fd, EPOLLIN);
}

int main(int argc, char **argv)
{
	struct sockaddr_in a = { .sin_family = AF_INET };
	struct rlimit files;
	int one = 1, processes;

	if (argc != 4 || inet_pton(AF_INET, argv[1], &a.sin_addr) != 1 || (processes = atoi(argv[3])) < 1)
		errx(2, "usage: c-floor ADDRESS PORT PROCESSES");
	a.sin_port = htons(atoi(argv[2]));
	signal(SIGPIPE, SIG_IGN);
	if (getrlimit(RLIMIT_NOFILE, &files) < 0)
		err(1, "getrlimit");
	if (files.rlim_max > 1 << 20)
		files.rlim_max = 1 << 20;
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	limit = files.rlim_max;
	rests = calloc(limit, sizeof *rests);

	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (!rests || listener < 0)
		err(1, "socket");
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);	/* inherited by what it accepts */
	if (bind(listener, (struct sockaddr *)&a, sizeof a) < 0 || listen(listener, BACKLOG) < 0)
		err(1, "%s:%s", argv[1], argv[2]);

	pid_t parent = getpid();
	for (int i = 1; i < processes; i++) {
		pid_t child = fork();
		if (child < 0)
			err(1, "fork");
		if (child > 0)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		if (getppid() != parent)	/* it ended before prctl */
			return 0;
		break;
	}
	ep = epoll_create1(EPOLL_CLOEXEC);
	if (ep < 0)
		err(1, "epoll_create1");
	watch(EPOLL_CTL_ADD, listener, EPOLLIN | EPOLLEXCLUSIVE);
	for (;;) {
		struct epoll_event e[EVENTS];
		int n = epoll_wait(ep, e, EVENTS, -1);
		for (int i = 0; i < n; i++) {
			int fd = e[i].data.fd;
			if (fd == listener)
				accept_one(fd);
			else if (rests[fd].data)
				flush(fd);
			else
				echo(fd);
		}
	}
}
