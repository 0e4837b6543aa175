// A program that loads the plug-in whose path is in /etc/plug.conf, and has it serve.
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char** argv) {
    char path[256] = "";
    FILE* f = fopen("/etc/plug.conf", "r");
    if (!f || !fgets(path, sizeof(path), f))
        return 1;
    path[strcspn(path, "\n")] = 0;
    void* plugin = dlopen(path, RTLD_NOW);
    int (*serve)(int, char**) = plugin ? (int (*)(int, char**))dlsym(plugin, "serve") : NULL;
    if (!serve) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    return serve(argc, argv);
}
