package service

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/sirupsen/logrus"

	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/internal/strictjson"
)

var (
	//go:embed page/index.html
	pageHTML []byte
	//go:embed page/page.js
	pageScript []byte
	//go:embed page/page.css
	pageStyle []byte
	//go:embed openapi.json
	openAPI []byte
)

// notifications is the path below which registries tell of what was pushed to them.
const notifications = "/api/v1/notifications/"

func (s *Service) routes() {
	file := func(pattern, kind string, text []byte) {
		s.mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			_, _ = w.Write(text)
		})
	}
	file("GET /{$}", "text/html; charset=utf-8", pageHTML)
	file("GET /page.js", "text/javascript; charset=utf-8", pageScript)
	file("GET /page.css", "text/css; charset=utf-8", pageStyle)
	file("GET /openapi.json", "application/json", openAPI)
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	s.mux.HandleFunc("GET /readyz", s.ready)
	s.mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
	s.mux.HandleFunc("GET /api/v1/conversions", s.list)
	s.mux.HandleFunc("GET /api/v1/conversions/{id}", s.one)
	s.mux.HandleFunc("POST /api/v1/conversions", s.handle(s.convert))
	s.mux.HandleFunc("POST "+notifications+"harbor", s.handle(s.harbor))
	s.mux.HandleFunc("POST "+notifications+"distribution", s.handle(s.distribution))
}

// handle answers what a request asked for, or why it is refused.
func (s *Service) handle(do func(*http.Request) (code int, answer any, err error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), askFor)
		defer cancel()
		code, v, err := do(r.WithContext(ctx))
		var refused *refusal
		switch {
		case err == nil:
			answer(w, code, v)
		case errors.As(err, &refused):
			logrus.Warnf("refused: %v", err)
			if refused.code == http.StatusServiceUnavailable {
				w.Header().Set("Retry-After", "5")
			}
			s.fail(w, refused.code, err)
		default:
			logrus.Errorf("failed: %v", err)
			s.fail(w, http.StatusInternalServerError, err)
		}
	}
}

func (s *Service) ready(w http.ResponseWriter, r *http.Request) {
	if err := s.o.Queue.Ready(r.Context()); err != nil {
		answer(w, http.StatusServiceUnavailable, map[string]string{"error": "the queue does not answer"})
		return
	}
	answer(w, http.StatusOK, map[string]string{"status": "ok"})
}

// conversion is what is told of one.
type conversion struct {
	ID        string `json:"id"`
	Source    string `json:"source"`
	Target    string `json:"target"`
	Status    string `json:"status"`
	Error     string `json:"error,omitempty"`
	Ref       string `json:"ref,omitempty"`
	MREnclave string `json:"mr_enclave,omitempty"`
	MRSigner  string `json:"mr_signer,omitempty"`
	Updated   string `json:"updated"`
}

func told(r *queue.Record) conversion {
	c := conversion{
		ID: r.ID, Source: r.Job.Source, Target: r.Job.Target, Status: string(r.Status), Error: r.Error, Ref: r.Ref,
		Updated: r.Updated.UTC().Format("2006-01-02T15:04:05Z"),
	}
	if r.Ref != "" {
		c.MREnclave, c.MRSigner = r.MREnclave.String(), r.MRSigner.String()
	}
	return c
}

func (s *Service) list(w http.ResponseWriter, _ *http.Request) {
	list := s.all()
	counts := map[queue.Status]int{}
	for _, r := range list {
		counts[r.Status]++
	}
	shown := []conversion{}
	for _, r := range list[:min(len(list), maxShown)] {
		shown = append(shown, told(r))
	}
	answer(w, http.StatusOK, map[string]any{"counts": counts, "conversions": shown})
}

func (s *Service) one(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	record := s.records[r.PathValue("id")]
	s.mu.Unlock()
	if record == nil {
		s.fail(w, http.StatusNotFound, errors.New("there is no such conversion"))
		return
	}
	answer(w, http.StatusOK, told(record))
}

// convert takes the plain form of a request.
func (s *Service) convert(r *http.Request) (int, any, error) {
	var in struct {
		Image string `json:"image"`
	}
	if err := body(r, &in); err != nil {
		return 0, nil, err
	}
	record, err := s.ask(r.Context(), in.Image, "", moment{order: s.arrived.Add(1)}, nil)
	if err != nil {
		return 0, nil, err
	}
	if record == nil {
		return 0, nil, refuse(http.StatusConflict, "something newer was asked for with the same target")
	}
	return http.StatusAccepted, told(record), nil
}

// harbor takes what Harbor sends when an artifact was pushed, in its own format or as a CloudEvent (Harbor, "Configure
// Webhook Notifications").
func (s *Service) harbor(r *http.Request) (int, any, error) {
	type event struct {
		Resources []struct {
			URL    string `json:"resource_url"`
			Digest string `json:"digest"`
		} `json:"resources"`
	}
	var in struct {
		Type  string      `json:"type"`
		At    json.Number `json:"occur_at"`
		Event event       `json:"event_data"`
		// Of a CloudEvent.
		ID   string `json:"id"`
		Data event  `json:"data"`
	}
	if err := body(r, &in); err != nil {
		return 0, nil, err
	}
	switch in.Type {
	case "PUSH_ARTIFACT":
	case "harbor.artifact.pushed":
		in.Event = in.Data
	case "":
		return 0, nil, refuse(http.StatusBadRequest, "this is not a notification of Harbor: it has no type")
	default:
		logrus.Debugf("left out: a notification of the type %.100q", in.Type)
		return http.StatusOK, nothing(), nil
	}
	var images []push
	for _, resource := range in.Event.Resources {
		images = append(images, newPush(resource.URL, resource.Digest, in.ID+in.At.String()))
	}
	if len(images) == 0 {
		return 0, nil, refuse(http.StatusBadRequest, "the notification names nothing that was pushed")
	}
	return s.askAll(r.Context(), images)
}

// nothing is the answer to a notification that asks for nothing.
func nothing() any { return map[string]any{"conversions": []conversion{}} }

// eventRules are those of a notification of Distribution. An event can have all that a manifest refers to.
var eventRules = strictjson.Rules{MaxList: 100_000, MaxKeys: 1_000_000, Named: []string{"annotations"}}

// distribution takes the events of the Distribution registry (its documentation, "Notifications").
func (s *Service) distribution(r *http.Request) (int, any, error) {
	var in struct {
		Events []struct {
			ID     string `json:"id"`
			Action string `json:"action"`
			Target struct {
				MediaType  string `json:"mediaType"`
				Repository string `json:"repository"`
				Tag        string `json:"tag"`
				Digest     string `json:"digest"`
			} `json:"target"`
			Request struct {
				Host string `json:"host"`
			} `json:"request"`
		} `json:"events"`
	}
	var refused *refusal
	if err := bodyBy(r, &in, eventRules); errors.As(err, &refused) && passes(err) {
		return 0, nil, err
	} else if err != nil {
		// What is refused is sent for ever, and all later notifications wait for it. What a manifest says is in it.
		logrus.Errorf("lost: a notification that cannot be read: %v", err)
		s.metrics.refused.WithLabelValues(strconv.Itoa(http.StatusBadRequest)).Inc()
		return http.StatusAccepted, nothing(), nil
	}
	if in.Events == nil {
		return 0, nil, refuse(http.StatusBadRequest, "this is not a notification of Distribution: it has no events")
	}
	var images []push
	for _, e := range in.Events {
		if e.Action == "push" && e.Target.Tag != "" &&
			(strings.Contains(e.Target.MediaType, "manifest") || strings.Contains(e.Target.MediaType, "index")) {
			name := e.Request.Host + "/" + e.Target.Repository + ":" + e.Target.Tag
			images = append(images, newPush(name, e.Target.Digest, e.ID))
		}
	}
	return s.askAll(r.Context(), images)
}
