// Package helper runs Lifeboat itself as a container where this process has
// access to the engine but not to the host's files: without root, or from
// another host. (Access to the engine's socket is as much as root anyway.)
//
// Run imports the static binary as an image, runs it with the host's root
// directory, processes and network, and passes its streams and exit code on.
// What it is to do, a Job, goes through the attached standard input, never
// through arguments or environment, which others can read (invariant 9). Inside
// is called first thing by the program and gives it its job.
//
// When whoever started the helper goes away, however that happens, the helper's
// Session.Gone is closed; the container is removed by the engine at its end.
package helper

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
)

const (
	repository = "lifeboat-helper"
	// variable tells the program that it is a helper. It holds no secret.
	variable = "LIFEBOAT_HELPER"
	// hostRoot is where the host's root directory is mounted in the helper, where
	// the engine allows it: the second way to it, the first is the root of the
	// engine's process.
	hostRoot = "/host"
	// socketPath is where the engine's socket is in the helper.
	socketPath = "/run/lifeboat/engine.sock"
)

// capabilities are what the helper's work needs: reading and writing any file
// with all its metadata, entering the engine's mount namespace, freezing.
// Privileged would be more than is needed, and engines without all
// capabilities of their own cannot give it.
var capabilities = []string{
	"SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "DAC_OVERRIDE", "CHOWN", "FOWNER", "FSETID", "MKNOD", "SETFCAP",
	"SETUID", "SETGID", "SYS_CHROOT", "KILL", "NET_ADMIN",
}

// Job is what a helper is to do.
type Job struct {
	// Args are the program's arguments, without its name.
	Args []string
	// Env are variables for the program; they are set by itself and not visible
	// from outside.
	Env map[string]string
	// Stdin is the program's standard input; nil for none.
	Stdin io.Reader
	// Binary is the program, a static executable; empty is this process's own.
	Binary string
	// SocketPath is the engine's socket on its host; empty is the one that the
	// engine was opened with, or /var/run/docker.sock where that is not a path.
	SocketPath string
	// Grace is how long the helper may take to end once ctx did; 0 is ten seconds.
	Grace time.Duration
}

// wire is the form of a job in its frame.
type wire struct {
	Args []string          `json:"args"`
	Env  map[string]string `json:"env,omitempty"`
}

// Run runs job in a helper container on the engine's host and returns its exit
// code. The image is imported when the engine does not have it. When ctx ends
// the helper is asked to end, then killed, and removed in any case.
func Run(ctx context.Context, e *engine.Engine, job Job, stdout, stderr io.Writer) (exit int, err error) {
	body, err := json.Marshal(wire{Args: job.Args, Env: job.Env})
	if err != nil {
		return 0, fmt.Errorf("helper: encode the job: %w", err)
	}
	if len(body) > maxJob {
		return 0, fmt.Errorf("helper: the job has %d bytes, at most %d: %w", len(body), maxJob, dr.ErrUsage)
	}
	ref, err := ensureImage(ctx, e, job.Binary)
	if err != nil {
		return 0, err
	}
	// The writing end is never closed before the helper has ended: that it ends
	// is how the helper knows that this process is gone.
	in, out := io.Pipe()
	defer in.Close()
	go feed(out, body, job.Stdin)
	socket, err := hostSocket(e, job)
	if err != nil {
		return 0, err
	}
	run := engine.AttachedRun{Config: config(ref), Stdin: in, Stdout: stdout, Stderr: stderr, Grace: job.Grace}
	run.Name = "lifeboat-helper-" + randomName()
	run.HostConfig = hostConfig(socket, true)
	exit, err = e.RunAttached(ctx, run)
	if err != nil && strings.Contains(err.Error(), "not a shared or slave mount") {
		// The host's root is a private mount, which engines refuse to bind since
		// it holds their own data. The root of a process does then.
		run.Name = "lifeboat-helper-" + randomName()
		run.HostConfig = hostConfig(socket, false)
		exit, err = e.RunAttached(ctx, run)
	}
	if err != nil {
		return exit, fmt.Errorf("helper: %w", err)
	}
	return exit, nil
}

// feed writes the job and its input. Errors show as the end of the helper.
func feed(w *io.PipeWriter, job []byte, stdin io.Reader) {
	if writeFrame(w, frameJob, job) != nil {
		return
	}
	if stdin != nil {
		buf := make([]byte, 64<<10)
		for {
			n, err := stdin.Read(buf)
			if n > 0 && writeFrame(w, frameInput, buf[:n]) != nil {
				return
			}
			if err != nil {
				break
			}
		}
	}
	_ = writeFrame(w, frameEnd, nil)
}

// hostSocket is the engine's socket as the engine's host knows it.
func hostSocket(e *engine.Engine, job Job) (string, error) {
	if job.SocketPath != "" {
		return job.SocketPath, nil
	}
	if s := e.Socket(); s != "" {
		return s, nil
	}
	u, err := url.Parse(e.Host())
	if err != nil {
		return "", fmt.Errorf("helper: engine host %q: %w", e.Host(), dr.ErrUsage)
	}
	if u.Scheme == "ssh" && strings.Trim(u.Path, "/") != "" {
		return u.Path, nil
	}
	return "/var/run/docker.sock", nil
}

func config(image string) json.RawMessage {
	return encode(map[string]any{
		"Image":  image,
		"User":   "0:0",
		"Labels": map[string]string{engine.LabelHelper: "run"},
		"Env":    []string{variable + "=1", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
	})
}

func hostConfig(socket string, bindRoot bool) json.RawMessage {
	mounts := []map[string]any{{"Type": "bind", "Source": socket, "Target": socketPath}}
	if bindRoot {
		mounts = append(mounts, map[string]any{"Type": "bind", "Source": "/", "Target": hostRoot, "BindOptions": map[string]any{"Propagation": "rslave"}})
	}
	return encode(map[string]any{
		"AutoRemove":   true,
		"NetworkMode":  "host",
		"PidMode":      "host",
		"UsernsMode":   "host",
		"CgroupnsMode": "host",
		"CapAdd":       capabilities,
		"SecurityOpt":  []string{"seccomp=unconfined", "apparmor=unconfined", "label=disable"},
		// Nothing of what it says goes to a log file on the host.
		"LogConfig":     map[string]any{"Type": "none"},
		"MaskedPaths":   []string{},
		"ReadonlyPaths": []string{},
		"RestartPolicy": map[string]any{"Name": "no"},
		"Mounts":        mounts,
	})
}

func encode(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic("helper: encode: " + err.Error()) // of maps and strings of this package
	}
	return b
}

func randomName() string {
	var b [6]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// ensureImage makes the image of a binary if the engine does not have it, and
// removes those of other binaries that nothing uses.
func ensureImage(ctx context.Context, e *engine.Engine, binary string) (string, error) {
	if binary == "" {
		binary = "/proc/self/exe"
	}
	f, err := os.Open(binary)
	if err != nil {
		return "", fmt.Errorf("helper: open the program: %w", err)
	}
	defer f.Close()
	if err := isStatic(f); err != nil {
		return "", fmt.Errorf("helper: program %s: %w", binary, err)
	}
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return "", fmt.Errorf("helper: read the program: %w", err)
	}
	ref := repository + ":" + hex.EncodeToString(h.Sum(nil)[:16])
	has, err := e.HasImage(ctx, ref)
	if err != nil || has {
		return ref, err
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeRootFS(w, io.NewSectionReader(f, 0, size), size)) }()
	_, err = e.ImportImage(ctx, r, ref, []string{`ENTRYPOINT ["/lifeboat"]`, "LABEL " + engine.LabelHelper + "=image"})
	_ = r.Close()
	if err != nil {
		return "", fmt.Errorf("helper: %w", err)
	}
	return ref, removeOthers(ctx, e, ref)
}

// removeOthers removes the images of earlier binaries.
func removeOthers(ctx context.Context, e *engine.Engine, keep string) error {
	images, err := e.LabelledImages(ctx, engine.LabelHelper)
	if err != nil {
		return fmt.Errorf("helper: %w", err)
	}
	for _, img := range images {
		for _, t := range img.Tags {
			if t == keep || !strings.HasPrefix(t, repository+":") {
				continue
			}
			// One that another helper still runs from stays.
			if err := e.UntagImage(ctx, t); err != nil && !errors.Is(err, dr.ErrHeld) {
				return fmt.Errorf("helper: remove the image of an earlier program: %w", err)
			}
		}
	}
	return nil
}

// RemoveImages removes all images that Run made. One in use gives dr.ErrHeld.
func RemoveImages(ctx context.Context, e *engine.Engine) error {
	images, err := e.LabelledImages(ctx, engine.LabelHelper)
	if err != nil {
		return fmt.Errorf("helper: %w", err)
	}
	for _, img := range images {
		if err := e.RemoveImage(ctx, img.ID); err != nil {
			return fmt.Errorf("helper: %w", err)
		}
	}
	return nil
}

// isStatic checks that an executable needs no interpreter, which the empty
// image does not have.
func isStatic(r io.ReaderAt) error {
	x, err := elf.NewFile(r)
	if err != nil {
		return fmt.Errorf("not an executable: %w", err)
	}
	for _, p := range x.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("it is linked dynamically and cannot run alone in a container; build it with CGO_ENABLED=0: %w", dr.ErrUsage)
		}
	}
	return nil
}

func writeRootFS(w io.Writer, program io.Reader, size int64) error {
	t := tar.NewWriter(w)
	for _, d := range []struct {
		name string
		mode int64
	}{{"etc/", 0o755}, {"host/", 0o755}, {"proc/", 0o555}, {"root/", 0o700}, {"run/", 0o755}, {"sys/", 0o555}, {"dev/", 0o755}, {"tmp/", 0o1777}, {"var/", 0o755}, {"var/tmp/", 0o1777}} {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d.name, Mode: d.mode}); err != nil {
			return err
		}
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "lifeboat", Mode: 0o755, Size: size}); err != nil {
		return err
	}
	if _, err := io.Copy(t, program); err != nil {
		return err
	}
	return t.Close()
}
