//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cconvert/cconvert/internal/fixture"
)

// Packages of images that share a base, as those of a team do. Each holds more programs than the image starts.
const (
	daemons = "lighttpd,haproxy,mosquitto,beanstalkd,caddy,dnsmasq,unbound,ngircd,gosu"
	pythons = "python3-flask,gunicorn,python3-tornado,python3-aiohttp,python3-twisted,poppler-utils," +
		"libmagic1,celery,uwsgi,uwsgi-plugin-python3,supervisor"
	scripts   = "lua5.4,lua-socket,tcl,php-cli,ruby-sinatra,libmojolicious-perl,starman"
	nodes     = "nodejs,node-express"
	databases = "postgresql,mariadb-server,etcd-server"
	apache    = "apache2"
	java      = "openjdk-17-jre-headless"
	numbers   = "python3-pandas"
	mixed     = "redis-server,nginx,nodejs,openjdk-17-jre-headless,python3"
)

// families are images that share bases. They run with no flags, or are refused, or are known not to run.
func families(t *testing.T) (list []*sample) {
	t.Helper()
	add := func(s *sample, files ...fixture.Entry) {
		if len(files) > 0 {
			s.layers = append(s.layers, files)
		}
		if s.ask == nil {
			s.ask = getPage
		}
		list = append(list, s)
	}
	served := fixture.File("app/page", page)
	new := func(name, packages, what string, cmd ...string) *sample {
		port := freePort(t)
		for i := range cmd {
			cmd[i] = strings.ReplaceAll(cmd[i], "PORT", port)
		}
		return &sample{
			name: name, packages: packages, what: what, port: port, kill: true,
			config: v1.Config{Cmd: cmd, WorkingDir: "/app"},
		}
	}
	at := func(s *sample, text string) string { return strings.ReplaceAll(text, "PORT", s.port) }

	// Servers in C and Go.
	s := new("lighttpd", daemons, "lighttpd in the foreground", "lighttpd", "-D", "-f", "/etc/lighttpd/small.conf")
	add(s, served, fixture.File("etc/lighttpd/small.conf",
		at(s, "server.document-root = \"/app\"\nserver.port = PORT\nserver.bind = \"127.0.0.1\"\n"+
			"index-file.names = (\"page\")\nmimetype.assign = (\"\" => \"text/plain\")\n")))
	s = new("haproxy", daemons, "HAProxy in the foreground", "haproxy", "-db", "-f", "/etc/haproxy/small.cfg")
	add(s, fixture.File("etc/haproxy/small.cfg",
		at(s, "defaults\n  mode http\n  timeout client 5s\n  timeout server 5s\n  timeout connect 5s\n"+
			"frontend f\n  bind 127.0.0.1:PORT\n  http-request return status 200 content-type text/plain string \""+
			strings.TrimSpace(page)+"\\n\"\n")))
	s = new("mosquitto", daemons, "the MQTT broker", "mosquitto", "-p", "PORT")
	s.ask = askMQTT
	add(s)
	s = new("beanstalkd", daemons, "the work queue", "beanstalkd", "-l", "127.0.0.1", "-p", "PORT")
	s.ask = func(port string) error { return askLine(port, "put 0 0 60 3\r\nabc\r\n", "INSERTED") }
	add(s)
	s = new("ngircd", daemons, "the IRC server", "ngircd", "-n", "-f", "/etc/small.conf")
	s.ask = func(port string) error { return askLine(port, "NICK a\r\nUSER a 0 * :a\r\n", ":irc.example.org 001 a") }
	add(s, fixture.File("etc/small.conf",
		at(s, "[Global]\nName = irc.example.org\nInfo = small\nListen = 127.0.0.1\nPorts = PORT\n"+
			"ServerUID = root\nServerGID = root\nMotdPhrase = hello\n[Options]\nDNS = no\nIdent = no\nPAM = no\n")))
	s = new("caddy", daemons, "a web server in Go with a configuration of its own", "caddy", "file-server", "--root",
		"/app", "--listen", "127.0.0.1:PORT")
	add(s, fixture.File("app/index.html", page))
	s = new("dnsmasq", daemons, "the DNS forwarder", "dnsmasq", "-k")
	s.refused = "network-interfaces"
	add(s)
	s = new("unbound", daemons, "the DNS resolver", "unbound", "-d")
	s.refused = "network-interfaces"
	add(s)
	s = new("gosu", daemons, "a script that goes on as another user by gosu", "/app/start.sh")
	s.ask = func(port string) error { return askLine(port, "put 0 0 60 3\r\nabc\r\n", "INSERTED") }
	add(s,
		fixture.Program("app/start.sh", at(s, "#!/bin/sh\nset -e\nexec gosu nobody beanstalkd -l 127.0.0.1 -p PORT\n")))
	s = new("setpriv", daemons, "a script that goes on as another user by setpriv", "/app/start.sh")
	s.refused = "user-switch"
	add(s, fixture.Program("app/start.sh", at(s, "#!/bin/sh\nset -e\nexec setpriv --reuid=nobody --regid=nogroup "+
		"--clear-groups -- beanstalkd -l 127.0.0.1 -p PORT\n")))
	s = new("plug-in", daemons, "a program that loads the plug-in that its configuration names", "/app/loader", "PORT",
		"/app/page")
	add(s, served, fixture.Program("app/loader", compileFile(t, "gcc", "loader.c", "-ldl")),
		fixture.Program("opt/plugins/server.so", compileFile(t, "gcc", "server.c", "-shared", "-fPIC", "-Dmain=serve")),
		fixture.File("etc/plug.conf", "/opt/plugins/server.so\n"))

	// Python: frameworks, servers, tools that it calls.
	python := func(name, what, text string) *sample {
		s := new(name, pythons, what, "python3", "/app/main.py", "PORT")
		s.layers = append(s.layers, []fixture.Entry{served, fixture.File("app/main.py", text)})
		return s
	}
	add(python("flask", "Flask's own server", "import sys, flask\napp = flask.Flask(__name__)\n@app.get('/')\ndef "+
		"page():\n  return open('/app/page').read()\napp.run('127.0.0.1', int(sys.argv[1]))\n"))
	add(python("tornado", "Tornado", "import sys, asyncio, tornado.web\nclass Page(tornado.web.RequestHandler):\n  "+
		"def get(self):\n    self.write(open('/app/page').read())\n"+
		"async def main():\n  tornado.web.Application([('/', Page)]).listen(int(sys.argv[1]), '127.0.0.1')\n  await "+
		"asyncio.Event().wait()\nasyncio.run(main())\n"))
	add(python("aiohttp", "aiohttp", "import sys\nfrom aiohttp import web\nasync def page(request):\n  return "+
		"web.Response(text=open('/app/page').read())\n"+
		"app = web.Application()\napp.router.add_get('/', page)\nweb.run_app(app, host='127.0.0.1', "+
		"port=int(sys.argv[1]))\n"))
	add(python("twisted", "Twisted", "import sys\nfrom twisted.web import server, resource\nfrom twisted.internet "+
		"import reactor\nclass Page(resource.Resource):\n  isLeaf = True\n"+
		"  def render_GET(self, request):\n    return open('/app/page', 'rb').read()\n"+
		"reactor.listenTCP(int(sys.argv[1]), server.Site(Page()), interface='127.0.0.1')\nreactor.run()\n"))
	s = new("gunicorn", pythons, "gunicorn with one worker, which it forks", "gunicorn", "-b", "127.0.0.1:PORT",
		"main:app")
	s.warns = []string{"process-per-enclave"}
	add(s, served, fixture.File("app/main.py",
		"def app(environ, start):\n  start('200 OK', [])\n  return [open('/app/page', 'rb').read()]\n"))
	add(python("pdftotext", "a program that another one is started by, found in PATH",
		serverOf("subprocess.run(['pdftotext', '/app/page.pdf', '-'], capture_output=True, check=True).stdout")),
		fixture.File("app/page.pdf", pdf(strings.TrimSpace(page))))
	add(python("libmagic", "a library that is loaded by its name at run time",
		serverOf("(page + b'%d' % ctypes.CDLL('libmagic.so.1').magic_version())")))
	s = python("pool", "a pool of processes", serverOf("multiprocessing.Pool(2).map(read, ['/app/page'])[0]"))
	s.limit = "multiprocessing.Pool needs named semaphores, which do not exist in an enclave: a pool of threads works"
	add(s)
	s = new("celery", pythons, "celery's default pool of processes", "celery", "-A", "main", "worker")
	s.refused = "named-semaphores"
	add(s, fixture.File("app/main.py", "import celery\napp = celery.Celery('main', broker='memory://')\n"))
	s = new("uwsgi", pythons, "uWSGI with a plug-in that is named by a link", "uwsgi", "--plugin", "python3",
		"--http-socket", "127.0.0.1:PORT", "--wsgi-file", "/app/main.py")
	s.refused = "plugin-link"
	add(s, fixture.File("app/main.py",
		"def application(environ, start):\n  start('200 OK', [])\n  return [open('/app/page', 'rb').read()]\n"), served)
	s = new("supervisord", pythons, "supervisord as Debian configures it", "supervisord", "-n")
	s.refused = "control-socket"
	add(s)
	s = new("supervised", pythons, "supervisord without a control socket, and the server that it starts", "supervisord",
		"-n", "-c", "/app/supervisord.conf")
	s.warns = []string{"process-per-enclave"}
	supervised := func(s *sample, log string) []fixture.Entry {
		return []fixture.Entry{served, fixture.File("app/main.py", serverOf("page")),
			fixture.File("app/supervisord.conf",
				at(s, "[supervisord]\nnodaemon=true\nuser=root\nlogfile=/dev/null\nlogfile_maxbytes=0\n"+
					"pidfile=/tmp/supervisord.pid\n"+
					"[program:web]\ncommand=python3 /app/main.py PORT\nstdout_logfile="+log+
					"\nstdout_logfile_maxbytes=0\n"))}
	}
	add(s, supervised(s, "NONE")...)
	s = new("supervised-log", pythons, "supervisord that appends to /dev/stdout", "supervisord", "-n", "-c",
		"/app/supervisord.conf")
	s.warns = []string{"process-per-enclave"}
	s.limit = "Gramine refuses to open /dev/stdout for appending, as supervisord and Python's logging.FileHandler do"
	add(s, supervised(s, "/dev/stdout")...)
	s = new("pandas", numbers, "numpy and pandas: many files, and extension modules", "python3", "/app/main.py", "PORT")
	add(s, served, fixture.File("app/main.py", "import pandas\n"+serverOf("page[:pandas.Series([len(page)]).sum()]")))

	// Other interpreters.
	s = new("lua", scripts, "Lua with a module in C", "lua5.4", "/app/main.lua", "PORT")
	add(s, served, fixture.File("app/main.lua", "local socket = require('socket')\nlocal s = "+
		"assert(socket.bind('127.0.0.1', tonumber(arg[1])))\nwhile true do\n  local c = s:accept()\n"+
		"  c:receive()\n  local f = io.open('/app/page')\n  c:send('HTTP/1.0 200 OK\\r\\n\\r\\n' .. f:read('a'))\n  "+
		"f:close()\n  c:close()\nend\n"))
	s = new("tcl", scripts, "Tcl", "tclsh", "/app/main.tcl", "PORT")
	add(s, served, fixture.File("app/main.tcl", "proc answer {c addr port} {\n  fconfigure $c -translation binary\n  "+
		"gets $c line\n  set f [open /app/page]\n  puts -nonewline $c \"HTTP/1.0 200 OK\\r\\n\\r\\n[read $f]\"\n"+
		"  close $f\n  close $c\n}\nsocket -server answer -myaddr 127.0.0.1 [lindex $argv 0]\nvwait forever\n"))
	s = new("php", scripts, "PHP's own server", "php", "-S", "127.0.0.1:PORT", "-t", "/app")
	add(s, fixture.File("app/index.php", "<?php readfile('/app/page');\n"), served)
	s = new("sinatra", scripts, "Sinatra on WEBrick", "ruby", "/app/main.rb", "-p", "PORT", "-o", "127.0.0.1", "-s",
		"webrick", "-e", "production")
	add(s, served, fixture.File("app/main.rb", "require 'sinatra'\nget('/') { File.read('/app/page') }\n"))
	s = new("mojolicious", scripts, "a framework in Perl", "perl", "/app/main.pl", "daemon", "-m", "production", "-l",
		"http://127.0.0.1:PORT")
	add(s, served, fixture.File("app/main.pl", "use Mojolicious::Lite -signatures;\nget '/' => sub ($c) { open my $f, "+
		"'<', '/app/page'; $c->render(text => join '', <$f>) };\napp->start;\n"))
	s = new("starman", scripts, "a server in Perl that names its processes", "starman", "--listen", "127.0.0.1:PORT",
		"--workers", "1", "/app/app.psgi")
	s.limit = "Net::Server calls prctl(2), which Gramine does not have, and ends"
	add(s, served, fixture.File("app/app.psgi", "sub { open my $f, '<', '/app/page'; [200, [], [<$f>]] }\n"))
	s = new("express", nodes, "Express, and all that Debian has it depend on", "node", "/app/main.js", "PORT")
	s.warns = []string{"long-file-list"}
	s.config.Env = []string{"NODE_PATH=/usr/share/nodejs"}
	add(s, served, fixture.File("app/main.js",
		"require('express')().get('/', (q, r) => r.sendFile('/app/page')).listen(process.argv[2], '127.0.0.1')\n"))
	s = new("node-child", nodes, "Node that starts a program", "node", "/app/main.js", "PORT")
	s.warns = []string{"long-file-list"}
	s.limit = "a child of Node is given its memory page by page, which without SGX takes more than the 65,530 " +
		"mappings of Linux: sysctl -w vm.max_map_count=262144"
	add(s, served, fixture.File("app/main.js", "const { execFileSync } = require('child_process')\n"+
		"require('http').createServer((q, r) => r.end(execFileSync('/bin/cat', ['/app/page'])))"+
		".listen(process.argv[2], '127.0.0.1')\n"))
	s = new("java-by-script", java, "a script that starts java by a link in another directory", "/app/start.sh")
	add(s, served, fixture.File("app/Server.class", compileJava(t)),
		fixture.Program("app/start.sh", at(s, "#!/bin/sh\n/usr/bin/java -Xmx256m -cp /app Server PORT\n")))

	// Apache forks, and starts a program for each request.
	s = new("apache", apache, "Apache with processes that it forks", "apache2", "-X", "-f", "/app/httpd.conf")
	s.warns = []string{"process-per-enclave"}
	add(s, served, fixture.File("app/httpd.conf", at(s, apacheConfig+"DocumentRoot /app\nDirectoryIndex page\n")))
	s = new("apache-cgi", apache, "Apache, and a program in Perl for each request", "apache2", "-DFOREGROUND", "-f",
		"/app/httpd.conf")
	s.warns = []string{"process-per-enclave"}
	add(s, served, fixture.File("app/httpd.conf", at(s, apacheConfig+"LoadModule cgi_module "+
		"/usr/lib/apache2/modules/mod_cgi.so\nLoadModule alias_module /usr/lib/apache2/modules/mod_alias.so\n"+
		"ScriptAlias / /app/cgi/page.pl\nStartServers 1\nMinSpareServers 1\nMaxSpareServers 1\n<Directory "+
		"/app/cgi>\nOptions ExecCGI\n</Directory>\n")),
		fixture.Program("app/cgi/page.pl",
			"#!/usr/bin/perl\nprint \"Content-Type: text/plain\\n\\n\";\nopen my $f, '<', '/app/page';\nprint <$f>;\n"))

	// Databases.
	s = new("postgres", databases, "PostgreSQL", "/usr/lib/postgresql/15/bin/postgres", "-D",
		"/var/lib/postgresql/15/main")
	s.config.User, s.refused = "postgres", "shared-memory"
	add(s)
	s = new("mariadb", databases, "MariaDB whose data is in the image", "mariadbd")
	s.config.User, s.refused = "mysql", "data-directory"
	add(s)
	s = new("etcd", databases, "etcd", "etcd")
	s.refused = "rename-directory"
	add(s)
	return list
}

const apacheConfig = "Listen 127.0.0.1:PORT\nServerName localhost\nPidFile /tmp/pid\nErrorLog /dev/stderr\nMutex " +
	"posixsem\n" +
	"LoadModule mpm_prefork_module /usr/lib/apache2/modules/mod_mpm_prefork.so\nLoadModule authz_core_module " +
	"/usr/lib/apache2/modules/mod_authz_core.so\n" +
	"LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so\n"

// serverOf returns a server in Python that answers with an expression, of bytes.
func serverOf(expression string) string {
	return `import ctypes, http.server, multiprocessing, subprocess, sys
def read(name):
  with open(name, 'rb') as f:
    return f.read()
class Page(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    page = read('/app/page')
    answer = ` + expression + `
    self.send_response(200)
    self.end_headers()
    self.wfile.write(answer)
if __name__ == '__main__':
  http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Page).serve_forever()
`
}

// pdf returns a document of one page with one line of text (ISO 32000-1, annex H.2).
func pdf(line string) string {
	content := "BT /F1 24 Tf 72 720 Td (" + line + ") Tj ET"
	var b strings.Builder
	b.WriteString("%PDF-1.4\n")
	var offsets []int
	for i, object := range []string{
		"<< /Type /Catalog /Pages 2 0 R >>", "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
		"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> " +
			">>",
		fmt.Sprintf("<< /Length %d >>\nstream\n%s\nendstream", len(content), content),
		"<< /Type /Font /Subtype /Type1 /BaseFont /Courier >>",
	} {
		offsets = append(offsets, b.Len())
		fmt.Fprintf(&b, "%d 0 obj\n%s\nendobj\n", i+1, object)
	}
	table := b.Len()
	fmt.Fprintf(&b, "xref\n0 %d\n0000000000 65535 f \n", len(offsets)+1)
	for _, at := range offsets {
		fmt.Fprintf(&b, "%010d 00000 n \n", at)
	}
	fmt.Fprintf(&b, "trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n", len(offsets)+1, table)
	return b.String()
}

// askLine sends lines, and waits for one that begins as it should.
func askLine(port, send, want string) error {
	c, err := dial(port)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, send); err != nil {
		return err
	}
	for lines := bufio.NewScanner(c); ; {
		if !lines.Scan() {
			return fmt.Errorf("no line begins with %q: %w", want, net.ErrClosed)
		}
		if strings.HasPrefix(lines.Text(), want) {
			return nil
		}
	}
}

// askMQTT connects as a client (MQTT 3.1.1, sections 3.1 and 3.2).
func askMQTT(port string) error {
	c, err := dial(port)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a")); err != nil {
		return err
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(c, answer); err != nil {
		return err
	}
	if string(answer) != "\x20\x02\x00\x00" {
		return fmt.Errorf("the answer is %q", answer)
	}
	return nil
}
