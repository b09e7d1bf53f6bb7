// Package httpd answers the questions an orchestrator asks over HTTP: is the process alive (/livez), and does it serve
// (/readyz).
package httpd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// Server serves HTTP on one listener.
type Server struct {
	http http.Server
}

// timeout bounds reading a request and writing its answer.
const timeout = 5 * time.Second

// New returns a server. ready says why the broker does not serve, nil when it does.
func New(ready func() error) *Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answer(w, ready()) })
	return &Server{http: http.Server{
		Handler: mux, ReadTimeout: timeout, WriteTimeout: timeout, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}}
}

func answer(w http.ResponseWriter, fault error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if fault != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = fmt.Fprintln(w, fault)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

// Serve serves l until Shutdown; then it returns nil.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown stops serving and waits for answers in progress until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error { return s.http.Shutdown(ctx) }
