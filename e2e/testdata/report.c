/* Prints what it was given, its secrets backwards, in itself and in a child; then waits to be told to end. As the
 * interpreter of a script it is given the script first. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t told;

static void end(int signal) {
	(void)signal;
	told = 1;
}

static void backwards(const char *what, const char *text) {
	printf("%s=", what);
	for (size_t i = strlen(text); i > 0; i--)
		putchar(text[i - 1]);
	putchar('\n');
}

static void report(const char *file) {
	char text[4096] = "";
	const char *variable = getenv("DB_PASSWORD");
	FILE *f = fopen(file, "r");
	if (f != NULL) {
		size_t n = fread(text, 1, sizeof text - 1, f);
		text[n] = 0;
		fclose(f);
	}
	backwards("env", variable == NULL ? "" : variable);
	backwards("file", text);
	fflush(stdout);
}

int main(int argc, char **argv) {
	char directory[4096] = "";
	struct sigaction action = {.sa_handler = end};
	sigaction(SIGTERM, &action, NULL);
	report("/run/cconvert/token");
	pid_t child = fork();
	if (child == 0) {
		printf("child:");
		report("/run/cconvert/token");
		_exit(0);
	}
	waitpid(child, NULL, 0);
	if (getcwd(directory, sizeof directory) == NULL)
		return 1;
	printf("directory=%s\nidentity=%d:%d\n", directory, getuid(), getgid());
	for (int i = 1; i < argc; i++)
		printf("argument=%s\n", argv[i]);
	char text[256] = "";
	FILE *f = fopen("/srv/sealed/data", "r");
	if (f != NULL && fgets(text, sizeof text, f) != NULL)
		printf("sealed=%s\n", text);
	printf("ready\n");
	fflush(stdout);
	while (!told)
		pause();
	return 7;
}
