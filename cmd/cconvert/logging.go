package main

import (
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/verify"
)

// logFlags say what is logged, and how.
type logFlags struct {
	format, level  string
	quiet, verbose bool
}

var (
	logFormats = []string{"text", "json"}
	logLevels  = []string{"error", "warning", "info", "debug", "trace"}
)

func (l *logFlags) add(f *pflag.FlagSet) {
	f.StringVar(&l.format, "log-format", "text", "how events are logged: text, or json, a line for each")
	f.StringVar(&l.level, "log-level", "info", "what is logged: error, warning, info, debug or trace")
	f.BoolVarP(&l.verbose, "verbose", "v", false, "log what is being done, with each request: --log-level trace")
	f.BoolVarP(&l.quiet, "quiet", "q", false, "show no progress, and report only what needs attention: "+
		"--log-level warning")
}

// apply has everything logged to w, as the flags say.
func (l *logFlags) apply(w io.Writer, changed func(flag string) bool) error {
	level := l.level
	switch {
	case !slices.Contains(logFormats, l.format):
		return usagef("--log-format %s: there is %s", l.format, strings.Join(logFormats, ", "))
	case !slices.Contains(logLevels, l.level):
		return usagef("--log-level %s: there is %s", l.level, strings.Join(logLevels, ", "))
	case l.quiet && l.verbose, (l.quiet || l.verbose) && changed("log-level"):
		return usagef("--quiet, --verbose and --log-level: one of them at a time")
	case l.quiet:
		level = "warning"
	case l.verbose:
		level = "trace"
	}
	parsed, err := logrus.ParseLevel(level)
	if err != nil {
		return err
	}
	logrus.SetOutput(w)
	logrus.SetLevel(parsed)
	logrus.SetFormatter(&textFormatter{logrus.TextFormatter{
		// Somebody who looks on knows the time, and a file does not. https://no-color.org
		DisableTimestamp: isTerminal(w), FullTimestamp: true, TimestampFormat: time.RFC3339,
		DisableColors: os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb",
	}})
	if l.format == "json" {
		logrus.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano, DisableHTMLEscape: true})
	}
	return nil
}

// textFormatter writes nothing that steers a terminal but its own colors: what registries answer is logged.
type textFormatter struct{ logrus.TextFormatter }

func (f *textFormatter) Format(e *logrus.Entry) ([]byte, error) {
	e.Message = harmless(e.Message)
	return f.TextFormatter.Format(e)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// showsProgress reports whether somebody looks on who wants to see how work gets on.
func showsProgress(w io.Writer) bool { return isTerminal(w) && forPeople() }

// forPeople reports whether all that is of interest is told, to people.
func forPeople() bool { return !quiet() && !logsJSON() }

// canAsk reports whether there is somebody to be asked.
func canAsk() bool { return isTerminal(os.Stdin) && isTerminal(os.Stderr) }

// quiet reports whether only what needs attention is told.
func quiet() bool { return logrus.GetLevel() <= logrus.WarnLevel }

// logsJSON reports whether programs read what is logged.
func logsJSON() bool {
	_, ok := logrus.StandardLogger().Formatter.(*logrus.JSONFormatter)
	return ok
}

// tell reports what came out of a conversion: to people, or to programs that read the log.
func tell(w io.Writer, r *convert.Result) {
	switch {
	case logsJSON():
		logrus.WithFields(logrus.Fields{
			"source": r.Source, "target": r.Target, "digest": r.Output.Digest, "mr_enclave": r.MREnclave.String(),
			"mr_signer": r.MRSigner.String(), "seconds": r.Timings["total"],
		}).Info("converted")
		tellFindings(w, r.Findings)
	case quiet():
		tellFindings(w, r.Findings)
	default:
		report(w, r)
	}
}

// tellFindings reports findings: all of them, or those that need attention if only these are to be told.
func tellFindings(w io.Writer, list []finding.Finding) {
	if quiet() {
		list = slices.DeleteFunc(slices.Clone(list), func(f finding.Finding) bool { return f.Severity == finding.Info })
	}
	if !logsJSON() {
		reportFindings(w, list)
		return
	}
	for _, f := range list {
		level := logrus.WarnLevel
		switch f.Severity {
		case finding.Info:
			level = logrus.InfoLevel
		case finding.Error:
			level = logrus.ErrorLevel
		}
		logrus.WithFields(logrus.Fields{"code": f.Code, "path": f.Path, "remedy": f.Remedy}).Log(level, f.Message)
	}
}

// tellChecks reports what was checked of an image that is to be signed.
func tellChecks(w io.Writer, checks ...verify.Check) {
	if !logsJSON() {
		printChecks(w, &verify.Report{Checks: checks})
		return
	}
	for _, c := range checks {
		level := logrus.InfoLevel
		if c.Status == verify.Failed {
			level = logrus.ErrorLevel
		}
		logrus.WithFields(logrus.Fields{
			"check": c.Name, "status": c.Status, "problems": c.Problems,
		}).Log(level, c.Detail)
	}
}

// tellEnclave reports what is about to be signed.
func tellEnclave(w io.Writer, r *verify.Report, of string) error {
	if !logsJSON() {
		return printEnclave(w, r, of)
	}
	s := r.SigStruct
	logrus.WithFields(logrus.Fields{
		"image": of, "source": r.Recipe.Source, "runtime": r.Recipe.Runtime.Digest, "mr_enclave": s.MREnclave.String(),
		"isv_prod_id": s.ISVProdID, "isv_svn": s.ISVSVN, "debug_enclave": s.Debug(), "weaknesses": r.Weaknesses,
	}).Info("to be signed")
	return nil
}

// loggedRequests logs each request, and each of its repetitions.
type loggedRequests struct{ inner http.RoundTripper }

func (l *loggedRequests) RoundTrip(r *http.Request) (*http.Response, error) {
	begin := time.Now()
	resp, err := l.inner.RoundTrip(r)
	what := "no answer"
	if err == nil {
		what = strconv.Itoa(resp.StatusCode)
	}
	// What is behind "?" can open a door, as of addresses that are signed for a while.
	u := url.URL{Scheme: r.URL.Scheme, Host: r.URL.Host, Path: r.URL.Path}
	logrus.Debugf("%s %s: %s in %d ms", r.Method, u.String(), what, time.Since(begin).Milliseconds())
	return resp, err
}
