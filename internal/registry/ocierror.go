package registry

import (
	"encoding/json"
	"net/http"
)

// refusal is an answer in the error form of the OCI distribution specification.
type refusal struct {
	status  int
	code    string // of the specification's list
	message string
	// reason tells refusals of one code apart for Lifeboat's client; see
	// ocistore.
	reason string
}

func (r *refusal) Error() string { return r.message }

// Reasons in the detail of a refusal.
const (
	reasonTaken   = "taken"   // the tag names another digest
	reasonRetired = "retired" // the tag's number was used and deleted
	reasonGap     = "gap"     // the number before does not exist
	reasonListed  = "listed"  // a tag names the manifest, or its index lists it, or may
	reasonDamaged = "damaged" // it cannot be read what the tag names
)

func (r *refusal) write(w http.ResponseWriter) {
	type detail struct {
		Reason string `json:"reason"`
	}
	type entry struct {
		Code    string  `json:"code"`
		Message string  `json:"message"`
		Detail  *detail `json:"detail,omitempty"`
	}
	e := entry{Code: r.code, Message: r.message}
	if r.reason != "" {
		e.Detail = &detail{r.reason}
	}
	body, err := json.Marshal(map[string][]entry{"errors": {e}})
	if err != nil {
		panic("registry: encode refusal: " + err.Error()) // strings only
	}
	h := w.Header()
	h.Del("Content-Length")
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(r.status)
	_, _ = w.Write(body) // the client is gone; nothing to do about it
}

func denied(message string) *refusal {
	return &refusal{status: http.StatusForbidden, code: "DENIED", message: message}
}

func conflict(reason, message string) *refusal {
	return &refusal{status: http.StatusConflict, code: "DENIED", message: message, reason: reason}
}

func internal() *refusal {
	return &refusal{status: http.StatusInternalServerError, code: "UNKNOWN", message: "the registry failed; its log says why"}
}

func noRoom() *refusal {
	return &refusal{
		status: http.StatusInsufficientStorage, code: "DENIED",
		message: "no space left in the registry's storage; nothing was stored; free or add room and try again",
	}
}
