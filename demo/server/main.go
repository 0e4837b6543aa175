// Command demo-server is the program in the demonstration's image: a web server that is the
// interpreter of its own configuration, "#!/app/server".
package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"strings"
)

func main() {
	if err := serve(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo-server:", err)
		os.Exit(1)
	}
}

// serve reads the script: lines "listen ADDRESS", "page FILE", "tls DIRECTORY" with certificate and key, and "password
// VARIABLE" with what would open a database.
func serve(args []string) error {
	if len(args) < 1 {
		return fmt.Errorf("a script is needed")
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	settings := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		settings[name] = value
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		page, err := os.ReadFile(settings["page"])
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, "%s", page)
		if name := settings["password"]; name != "" {
			fmt.Fprintf(w, "Its password has %d characters.\n", len(os.Getenv(name)))
		}
	})
	dir := settings["tls"]
	if dir == "" {
		return http.ListenAndServe(settings["listen"], nil)
	}
	return http.ListenAndServeTLS(settings["listen"], dir+"/tls.crt", dir+"/tls.key", nil)
}
