package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// tool is one way to copy the container's data and to get them back. A tool has one repository at a time,
// below the directory that prepare was given.
type tool interface {
	// prepare makes a fresh repository.
	prepare(ctx context.Context, dir string) error
	// copy brings the repository to the state of the data.
	copy(ctx context.Context) (outcome, error)
	// restore writes the newest copy to a new directory, and nothing is said of the disk.
	restore(ctx context.Context, to string) (outcome, error)
	// stored is where the bytes are that the repository has.
	stored() string
	// version is what the tool calls itself.
	version(ctx context.Context) (string, error)
	// commands are what copy and restore run, for the reader.
	commands() []string
	// sees tells whether a step changes anything that the tool copies.
	sees(step string) bool
	// end gives up the repository; its files go with the stage.
	end(ctx context.Context) error
}

// names are all tools in the order of tables.
func names() []string {
	return []string{"lifeboat", "restic", "restic-http", "borg", "kopia", "docker"}
}

func makers() map[string]func(*stage) tool {
	return map[string]func(*stage) tool{
		"lifeboat":    func(s *stage) tool { return &lifeboat{stage: s} },
		"restic":      func(s *stage) tool { return &restic{stage: s} },
		"restic-http": func(s *stage) tool { return &restic{stage: s, http: true} },
		"borg":        func(s *stage) tool { return &borg{stage: s} },
		"kopia":       func(s *stage) tool { return &kopia{stage: s} },
		"docker":      func(s *stage) tool { return &docker{stage: s} },
	}
}

// needs are the programs that a tool consists of.
func needs(name string) []string {
	switch name {
	case "lifeboat":
		return nil // built
	case "restic-http":
		return []string{"restic", "rclone"}
	}
	return []string{name}
}

// password is that of the repositories of restic, borg and kopia, which hold made-up data for some minutes.
const password = "made-up data"

// command prepares a peer's command with its environment.
func command(ctx context.Context, s *stage, env []string, name string, args ...string) *exec.Cmd {
	cmd := s.site.Command(ctx, name, args...)
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// versionOf is the first line of what a program says of itself.
func versionOf(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
}

// borg with its default compression and the faster of its keyed hashes.
type borg struct {
	stage *stage
	dir   string
	count int
}

func (b *borg) env() []string {
	return []string{"BORG_REPO=" + b.stored(), "BORG_PASSPHRASE=" + password, "BORG_BASE_DIR=" + filepath.Join(b.dir, "base")}
}

func (b *borg) prepare(ctx context.Context, dir string) error {
	b.dir, b.count = dir, 0
	var o outcome
	_, err := o.measured(command(ctx, b.stage, b.env(), "borg", "init", "--encryption", "repokey-blake2"), "borg init")
	return err
}

func (b *borg) copy(ctx context.Context) (o outcome, err error) {
	b.count++
	_, err = o.measured(command(ctx, b.stage, b.env(), "borg", "create", fmt.Sprintf("::c%d", b.count), b.stage.layer, b.stage.data), "borg create")
	return o, err
}

func (b *borg) restore(ctx context.Context, to string) (o outcome, err error) {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return o, err
	}
	cmd := command(ctx, b.stage, b.env(), "borg", "extract", fmt.Sprintf("::c%d", b.count))
	cmd.Dir = to
	_, err = o.measured(cmd, "borg extract")
	return o, err
}

func (b *borg) stored() string { return filepath.Join(b.dir, "repository") }

func (b *borg) version(ctx context.Context) (string, error) {
	return versionOf(ctx, "borg", "--version")
}

func (b *borg) commands() []string {
	return []string{"borg init --encryption repokey-blake2 (local directory)", "borg create ::NAME LAYER VOLUME", "borg extract ::NAME"}
}

func (b *borg) sees(string) bool { return true }

func (b *borg) end(context.Context) error { return nil }

// kopia compresses with the fastest zstd; by default it would not compress at all.
type kopia struct {
	stage *stage
	dir   string
	roots []string // of the newest copy: layer, volume
}

func (k *kopia) env() []string {
	return []string{
		"KOPIA_PASSWORD=" + password, "KOPIA_CONFIG_PATH=" + filepath.Join(k.dir, "kopia.config"), "KOPIA_CACHE_DIRECTORY=" + filepath.Join(k.dir, "cache"),
		"KOPIA_LOG_DIR=" + filepath.Join(k.dir, "log"), "KOPIA_CHECK_FOR_UPDATES=false",
	}
}

func (k *kopia) run(ctx context.Context, o *outcome, args ...string) ([]byte, error) {
	return o.measured(command(ctx, k.stage, k.env(), "kopia", args...), "kopia "+strings.Join(args[:2], " "))
}

func (k *kopia) prepare(ctx context.Context, dir string) error {
	k.dir = dir
	if err := os.MkdirAll(k.stored(), 0o700); err != nil {
		return err
	}
	var o outcome
	if _, err := k.run(ctx, &o, "repository", "create", "filesystem", "--path", k.stored()); err != nil {
		return err
	}
	_, err := k.run(ctx, &o, "policy", "set", "--global", "--compression", "zstd-fastest")
	return err
}

func (k *kopia) copy(ctx context.Context) (o outcome, err error) {
	k.roots = nil
	for _, dir := range []string{k.stage.layer, k.stage.data} {
		out, err := k.run(ctx, &o, "snapshot", "create", "--json", "--no-progress", dir)
		if err != nil {
			return o, err
		}
		var answer struct {
			RootEntry struct{ Obj string } `json:"rootEntry"`
		}
		if err := json.Unmarshal(out, &answer); err != nil {
			return o, fmt.Errorf("kopia snapshot create: its answer: %w", err)
		}
		k.roots = append(k.roots, answer.RootEntry.Obj)
	}
	return o, nil
}

func (k *kopia) restore(ctx context.Context, to string) (o outcome, err error) {
	for i, root := range k.roots {
		if _, err := k.run(ctx, &o, "snapshot", "restore", root, filepath.Join(to, fmt.Sprint(i))); err != nil {
			return o, err
		}
	}
	return o, nil
}

func (k *kopia) stored() string { return filepath.Join(k.dir, "repository") }

func (k *kopia) version(ctx context.Context) (string, error) {
	v, err := versionOf(ctx, "kopia", "--version")
	v, _, _ = strings.Cut(v, " ")
	return "kopia " + v, err
}

func (k *kopia) commands() []string {
	return []string{
		"kopia repository create filesystem; kopia policy set --global --compression zstd-fastest",
		"kopia snapshot create LAYER; kopia snapshot create VOLUME", "kopia snapshot restore ID DIR, twice",
	}
}

func (k *kopia) sees(string) bool { return true }

func (k *kopia) end(context.Context) error { return nil }
