package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/cconvert/cconvert/internal/strictjson"
	"github.com/cconvert/cconvert/pkg/image"
)

// codeOf is the code for what went wrong at a registry. A registry sends a notification again, and holds back all later
// ones, until it is taken: only for what may pass, as what is wrong with this service's surroundings may. Nothing that
// is wrong with an image does.
func codeOf(err error) int {
	var answer *transport.Error
	if errors.As(err, &answer) {
		if answer.StatusCode == http.StatusNotFound {
			return http.StatusNotFound
		}
	}
	if image.Transient(err) || image.Unreachable(err) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, image.ErrUnauthorized) || errors.Is(err, image.ErrCredentials) {
		return http.StatusBadGateway
	}
	return http.StatusBadRequest
}

func (s *Service) fail(w http.ResponseWriter, code int, err error) {
	s.metrics.refused.WithLabelValues(fmt.Sprint(code)).Inc()
	answer(w, code, map[string]string{"error": err.Error()})
}

func answer(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // records and strings
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n')) // who asked has gone
}

// body reads JSON that is all of a request.
func body(r *http.Request, to any) error {
	return bodyBy(r, to, strictjson.Rules{MaxList: maxListed})
}

// bodyBy is body with other rules.
func bodyBy(r *http.Request, to any, rules strictjson.Rules) error {
	if read, ok := r.Context().Value(hasBeenRead{}).(func()); ok {
		defer read()
	}
	b, err := io.ReadAll(r.Body)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return refuse(http.StatusRequestEntityTooLarge, "the request has more than %d bytes", large.Limit)
	case err != nil: // it was cut off
		return refuse(http.StatusServiceUnavailable, "reading the request: %w", err)
	}
	// A list of little else than brackets takes a hundred times its size in memory.
	if err := strictjson.Check(b, rules); err != nil {
		return refuse(http.StatusBadRequest, "reading the request: %w", err)
	}
	if err := json.Unmarshal(b, to); err != nil {
		return refuse(http.StatusBadRequest, "reading the request: %w", err)
	}
	return nil
}
