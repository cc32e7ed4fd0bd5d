// Package compose reads what Docker Compose says of a project: the labels that
// it puts on containers, networks and volumes, and its files.
//
// Labels is one container's labels; ParseDependsOn reads the start order that
// Compose version 2 writes into a label; Load reads the files with Compose's own
// library, for version 1 (which writes no such label) and to find every file
// that belongs to the project. The package talks to no engine and never writes.
package compose

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Labels that Compose puts on what it creates.
const (
	LabelProject     = "com.docker.compose.project"
	LabelService     = "com.docker.compose.service"
	LabelNumber      = "com.docker.compose.container-number"
	LabelOneOff      = "com.docker.compose.oneoff"
	LabelWorkingDir  = "com.docker.compose.project.working_dir"
	LabelConfigFiles = "com.docker.compose.project.config_files"
	LabelEnvFiles    = "com.docker.compose.project.environment_file"
	LabelDependsOn   = "com.docker.compose.depends_on"
	LabelVersion     = "com.docker.compose.version"
	LabelNetwork     = "com.docker.compose.network"
	LabelVolume      = "com.docker.compose.volume"
)

// Labels are the Compose labels of one container.
type Labels struct {
	Project string
	Service string
	Number  string
	// OneOff is true for containers of `docker compose run`.
	OneOff bool
	// WorkingDir, ConfigFiles and EnvFiles are absolute on the host where
	// Compose ran; relative ones of version 1 are taken from WorkingDir.
	WorkingDir  string
	ConfigFiles []string
	EnvFiles    []string
	// DependsOn is the raw label; HasDependsOn tells an empty one from none.
	DependsOn    string
	HasDependsOn bool
	Version      string
}

// Of reads the labels of a container; ok is false where Compose did not make it.
func Of(labels map[string]string) (l Labels, ok bool) {
	project, ok := labels[LabelProject]
	if !ok || project == "" {
		return Labels{}, false
	}
	l = Labels{
		Project:    project,
		Service:    labels[LabelService],
		Number:     labels[LabelNumber],
		OneOff:     strings.EqualFold(labels[LabelOneOff], "true"),
		WorkingDir: labels[LabelWorkingDir],
		Version:    labels[LabelVersion],
	}
	l.DependsOn, l.HasDependsOn = labels[LabelDependsOn]
	l.ConfigFiles = pathList(labels[LabelConfigFiles], l.WorkingDir)
	l.EnvFiles = pathList(labels[LabelEnvFiles], l.WorkingDir)
	return l, true
}

// pathList splits a list at commas and makes each path absolute. What is no
// file (standard input, a remote reference) is left out.
func pathList(s, dir string) []string {
	var out []string
	for p := range strings.SplitSeq(s, ",") {
		p = strings.TrimSpace(p)
		if p == "" || p == "-" || strings.Contains(p, "://") {
			continue
		}
		if !filepath.IsAbs(p) {
			if !filepath.IsAbs(dir) {
				continue
			}
			p = filepath.Join(dir, p)
		}
		out = append(out, filepath.Clean(p))
	}
	return out
}

// Conditions of a dependency.
const (
	Started   = "service_started"
	Healthy   = "service_healthy"
	Completed = "service_completed_successfully"
)

// Dependency is one service that another waits for.
type Dependency struct {
	Service   string
	Condition string
}

// ParseDependsOn reads the depends_on label: service:condition:restart,…; older
// ones leave out what stands after a colon. An unknown condition is an error.
func ParseDependsOn(s string) ([]Dependency, error) {
	var out []Dependency
	for item := range strings.SplitSeq(s, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		part := strings.Split(item, ":")
		d := Dependency{Service: part[0], Condition: Started}
		if len(part) > 1 && part[1] != "" {
			d.Condition = part[1]
		}
		if d.Service == "" || len(part) > 3 {
			return nil, fmt.Errorf("label %s: %q is not service:condition:restart", LabelDependsOn, item)
		}
		switch d.Condition {
		case Started, Healthy, Completed:
		default:
			return nil, fmt.Errorf("label %s: unknown condition %q", LabelDependsOn, d.Condition)
		}
		out = append(out, d)
	}
	return out, nil
}
