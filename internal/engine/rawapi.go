package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/errdefs/pkg/errhttp"
	"github.com/moby/moby/client"
)

// maxAnswer bounds what is read of one answer of the engine.
const maxAnswer = 64 << 20

// apiError is the engine's refusal; it unwraps to the class of its status code.
type apiError struct {
	msg   string
	class error
}

func (e *apiError) Error() string { return e.msg }
func (e *apiError) Unwrap() error { return e.class }

// call does one request with JSON in and out, over the same connections as the
// typed client. It exists because the typed client's structs know the fields of
// one API version only: a create request must carry what was captured from any
// engine, older or newer, without losing a field on the way.
func (e *Engine) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode the request: %w: %w", err, errNotSent)
		}
		body = bytes.NewReader(b)
	}
	u := url.URL{Scheme: "http", Host: client.DummyHost, Path: "/v" + e.cli.ClientVersion() + path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errNotSent)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("User-Agent", "lifeboat")
	resp, err := e.raw.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode >= 400 {
		return refusal(resp.StatusCode, b)
	}
	if err != nil {
		return fmt.Errorf("read the engine's answer: %w", err)
	}
	if out == nil || len(b) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("read the engine's answer: %w", err)
	}
	return nil
}

func refusal(status int, body []byte) error {
	var m struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &m) != nil || m.Message == "" {
		m.Message = strings.TrimSpace(string(body[:min(len(body), 512)]))
	}
	if m.Message == "" {
		m.Message = http.StatusText(status)
	}
	return &apiError{msg: m.Message, class: errhttp.ToNative(status)}
}
