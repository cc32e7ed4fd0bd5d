package ocistore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"unicode"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"lifeboat/internal/store"
)

var (
	errStalled   = store.ErrStalled
	errDowngrade = errors.New("the registry points from TLS to plain HTTP, which is not followed")
)

// maxErrorBody bounds how much of an error response is read, in bytes.
const maxErrorBody = 64 << 10

// transportError classifies the failure of a request that got no response.
// URLs are dropped: their query may hold upload tokens or signatures.
func transportError(ctx context.Context, err error) error {
	if ctxErr := context.Cause(ctx); ctxErr != nil {
		return ctxErr
	}
	var ue *url.Error
	for errors.As(err, &ue) {
		err = ue.Err
	}
	var pin *pinError
	var unknownCA x509.UnknownAuthorityError
	var verify *tls.CertificateVerificationError
	var tokenResp *errcode.ErrorResponse
	switch {
	case errors.As(err, &pin):
		return fmt.Errorf("%w: %w", pin, store.ErrUntrusted)
	case errors.As(err, &unknownCA):
		return fmt.Errorf("%w; pin the fingerprint that the registry printed (registry.fingerprint), or name its certificate authority (registry.ca_file): %w", err, store.ErrUntrusted)
	case errors.As(err, &verify):
		return fmt.Errorf("%w; pin the fingerprint that the registry printed (registry.fingerprint), or reach it by a name that its certificate has: %w", err, store.ErrUntrusted)
	case errors.Is(err, errDowngrade):
		return fmt.Errorf("%w: %w", errDowngrade, store.ErrRefused)
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return fmt.Errorf("no credentials for this registry; log in with docker login: %w", store.ErrUnauthorized)
	case errors.As(err, &tokenResp):
		// The token service answered; only its status is told on.
		return fmt.Errorf("token service: status %d: %w", tokenResp.StatusCode, sentinelOf(tokenResp.StatusCode, tokenResp.Errors))
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("it speaks plain HTTP; use oci+http:// on loopback, or give the registry a certificate: %w", store.ErrRefused)
	}
	return fmt.Errorf("%w: %w", plainer(err), store.ErrUnreachable)
}

// plainer reduces chains of the network library to what a person needs.
func plainer(err error) error {
	var op *net.OpError
	var dns *net.DNSError
	var call *os.SyscallError
	switch {
	case errors.As(err, &dns):
		return &dialError{dns}
	case errors.As(err, &op) && op.Op == "dial" && errors.As(op.Err, &call):
		return &dialError{call.Err}
	case errors.As(err, &op) && op.Op == "dial":
		return &dialError{op.Err}
	}
	return err
}

// dialError: no connection came about, so nothing was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return "connect: " + e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// neverSent reports whether a request that failed with err cannot have reached
// the registry, or was not understood as one.
func neverSent(err error) bool {
	var dial *dialError
	return errors.As(err, &dial) || errors.Is(err, store.ErrUnauthorized) || errors.Is(err, store.ErrUntrusted) || errors.Is(err, store.ErrRefused)
}

// response is a refusal of the registry.
type response struct {
	status int
	errs   errcode.Errors
	// reason is what Lifeboat's own registry adds as detail.
	reason   string
	sentinel error
}

func (e *response) Error() string {
	text := http.StatusText(e.status)
	if len(e.errs) > 0 {
		var parts []string
		for _, x := range e.errs {
			parts = append(parts, clean(x.Code+" "+x.Message))
		}
		text = strings.Join(parts, "; ")
	}
	return fmt.Sprintf("status %d: %s: %s", e.status, text, e.sentinel)
}

func (e *response) Unwrap() error { return e.sentinel }

// clean makes text from the registry safe to print, and short.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

// statusError reads a response that is not what was hoped for. It does not
// close the body.
func statusError(resp *http.Response) error {
	e := &response{status: resp.StatusCode}
	var body struct {
		Errors []struct {
			Code    string          `json:"code"`
			Message string          `json:"message"`
			Detail  json.RawMessage `json:"detail"`
		} `json:"errors"`
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err == nil && json.Unmarshal(raw, &body) == nil {
		for _, x := range body.Errors {
			e.errs = append(e.errs, errcode.Error{Code: x.Code, Message: x.Message, Detail: string(x.Detail)})
			var d struct {
				Reason string `json:"reason"`
			}
			if json.Unmarshal(x.Detail, &d) == nil && d.Reason != "" {
				e.reason = d.Reason
			}
		}
	}
	e.sentinel = sentinelOf(resp.StatusCode, e.errs)
	if resp.StatusCode >= 500 && len(e.errs) == 0 && isFull(string(raw)) {
		e.sentinel = store.ErrNoSpace
	}
	return e
}

// sentinelOf maps status and error codes; the code counts more, because
// registries disagree about statuses.
func sentinelOf(status int, errs errcode.Errors) error {
	for _, x := range errs {
		switch x.Code {
		case errcode.ErrorCodeManifestBlobUnknown:
			return store.ErrIncomplete
		case errcode.ErrorCodeUnsupported:
			return store.ErrUnsupported
		case errcode.ErrorCodeUnauthorized:
			if status == http.StatusForbidden {
				return store.ErrForbidden
			}
			return store.ErrUnauthorized
		case errcode.ErrorCodeBlobUnknown, errcode.ErrorCodeManifestUnknown, errcode.ErrorCodeNameUnknown:
			return store.ErrNotFound
		case errcode.ErrorCodeDigestInvalid:
			return store.ErrDigestMismatch
		}
		if status >= 400 && isFull(x.Message+" "+fmt.Sprint(x.Detail)) {
			return store.ErrNoSpace
		}
	}
	switch status {
	case http.StatusUnauthorized:
		return store.ErrUnauthorized
	case http.StatusForbidden:
		return store.ErrForbidden
	case http.StatusNotFound:
		return store.ErrNotFound
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return store.ErrUnsupported
	case http.StatusRequestEntityTooLarge:
		return store.ErrTooLarge
	case http.StatusInsufficientStorage:
		return store.ErrNoSpace
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusTooEarly:
		return store.ErrUnreachable
	}
	if status >= 500 {
		return store.ErrUnreachable
	}
	return store.ErrRefused
}

// isFull recognises what file systems, object stores and registries say when
// there is no room.
func isFull(text string) bool {
	text = strings.ToLower(text)
	for _, s := range []string{"no space left", "disk quota exceeded", "quota exceeded", "quotaexceeded", "insufficient storage", "storage is full", "exceeds the quota", "will exceed the configured upper limit"} {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}

// drain reads the little that may be left of a response, so that its
// connection can be used again, and closes it.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // best effort; Close decides
	_ = resp.Body.Close()
}
