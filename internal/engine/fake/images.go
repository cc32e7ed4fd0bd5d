package fake

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// img is an image. Its layers are laid over each other in one directory.
type img struct {
	id     string // digest of config
	config []byte
	layers [][]byte // uncompressed tars
	tags   []string
	dir    string
}

// parsed is the configuration, as far as it is needed.
func (i *img) parsed() obj {
	o := obj{}
	_ = json.Unmarshal(i.config, &o)
	return o
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func withTag(ref string) string {
	if strings.LastIndex(ref, ":") > strings.LastIndex(ref, "/") {
		return ref
	}
	return ref + ":latest"
}

func (e *Engine) findImage(ref string) (*img, error) {
	for _, i := range e.images {
		if i.id == ref || slices.Contains(i.tags, withTag(ref)) || len(ref) >= 8 && strings.HasPrefix(strings.TrimPrefix(i.id, "sha256:"), ref) {
			return i, nil
		}
	}
	return nil, notFound("image", ref)
}

func (e *Engine) routeImages(w http.ResponseWriter, r *http.Request, path string) {
	q := r.URL.Query()
	name, action := path, ""
	for _, a := range []string{"/json", "/tag"} {
		if s, ok := strings.CutSuffix(path, a); ok {
			name, action = s, a
		}
	}
	switch {
	case path == "json":
		e.locked(w, func() (any, error) { return e.listImages(q.Get("filters")), nil })
	case path == "get":
		e.save(w, q["names"])
	case path == "load":
		e.load(w, r)
	case path == "create":
		e.create(w, r)
	case action == "/json":
		e.locked(w, func() (any, error) {
			i, err := e.findImage(name)
			if err != nil {
				return nil, err
			}
			return i.show(), nil
		})
	case action == "/tag":
		e.locked(w, func() (any, error) {
			i, err := e.findImage(name)
			if err != nil {
				return nil, err
			}
			e.tag(i, q.Get("repo")+":"+q.Get("tag"))
			return obj{}, nil
		})
	case r.Method == "DELETE":
		e.locked(w, func() (any, error) { return []obj{}, e.deleteImage(path) })
	}
}

func (e *Engine) listImages(filters string) []obj {
	var f struct{ Label map[string]bool }
	_ = json.Unmarshal([]byte(filters), &f)
	out := []obj{}
	for _, i := range e.images {
		labels := sub(sub(i.parsed(), "config"), "Labels")
		fits := true
		for l := range f.Label {
			if _, ok := labels[l]; !ok {
				fits = false
			}
		}
		if fits {
			out = append(out, obj{"Id": i.id, "RepoTags": i.tags, "Labels": labels})
		}
	}
	return out
}

func (i *img) show() obj {
	c := i.parsed()
	return obj{
		"Id": i.id, "RepoTags": slices.Clone(i.tags), "RepoDigests": []string{}, "Config": c["config"], "Architecture": c["architecture"], "Os": c["os"],
		"Created": c["created"], "RootFS": obj{"Type": "layers", "Layers": strs(sub(c, "rootfs"), "diff_ids")}, "GraphDriver": obj{"Name": "overlay2", "Data": obj{"UpperDir": i.dir}},
	}
}

func (e *Engine) tag(i *img, ref string) {
	for _, o := range e.images {
		o.tags = slices.DeleteFunc(o.tags, func(t string) bool { return t == ref })
	}
	i.tags = append(i.tags, ref)
}

func (e *Engine) deleteImage(ref string) error {
	i, err := e.findImage(ref)
	if err != nil {
		return err
	}
	if ref != i.id && len(i.tags) > 1 {
		i.tags = slices.DeleteFunc(i.tags, func(t string) bool { return t == withTag(ref) })
		return nil
	}
	for _, c := range e.containers {
		if c.image == i {
			return refused(http.StatusConflict, "conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", ref, c.id[:12], i.id)
		}
	}
	if len(i.tags) > 1 {
		return refused(http.StatusConflict, "conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", ref)
	}
	delete(e.images, i.id)
	return errors.Join(os.RemoveAll(filepath.Dir(i.dir)), os.Remove(e.configPath(i.id)))
}

func (e *Engine) configPath(id string) string {
	return filepath.Join(e.root, "image/overlay2/imagedb/content/sha256", strings.TrimPrefix(id, "sha256:"))
}

// addImage stores an image and lays out its files.
func (e *Engine) addImage(config []byte, layers [][]byte) (*img, error) {
	id := digest(config)
	if i := e.images[id]; i != nil {
		return i, nil
	}
	i := &img{id: id, config: config, layers: layers, dir: filepath.Join(e.root, "overlay2", "image-"+id[7:19], "diff")}
	want := strs(sub(i.parsed(), "rootfs"), "diff_ids")
	if len(want) != len(layers) {
		return nil, fmt.Errorf("invalid manifest, layers length mismatch: expected %d, got %d", len(want), len(layers))
	}
	for n, l := range layers {
		if digest(l) != want[n] {
			return nil, fmt.Errorf("invalid diffID for layer %d: expected %q, got %q", n, want[n], digest(l))
		}
		if err := extract(i.dir, l); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(e.configPath(id), config, 0o600); err != nil {
		return nil, err
	}
	e.images[id] = i
	return i, nil
}

// extract lays a layer over what is in dir.
func extract(dir string, layer []byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	t := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Clean(strings.Trim(h.Name, "/"))
		if base, ok := strings.CutPrefix(filepath.Base(name), ".wh."); ok {
			_ = os.RemoveAll(filepath.Join(dir, filepath.Dir(name), base))
			continue
		}
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(filepath.Join(dir, name), 0o755)
		case tar.TypeReg:
			var b []byte
			if b, err = io.ReadAll(t); err == nil {
				err = root.WriteFile(name, b, os.FileMode(h.Mode)&0o777)
			}
		}
		if err != nil {
			return err
		}
	}
}

// progress answers with lines of JSON.
func progress(w http.ResponseWriter, lines ...obj) {
	w.Header().Set("Content-Type", "application/json")
	for _, l := range lines {
		_ = json.NewEncoder(w).Encode(l)
	}
}

// create imports a root file system or pulls.
func (e *Engine) create(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("fromSrc") == "" {
		e.pull(w, q.Get("fromImage"), q.Get("tag"))
		return
	}
	layer, err := io.ReadAll(r.Body)
	if err != nil {
		reply(w, err)
		return
	}
	cfg := obj{}
	for _, c := range q["changes"] {
		change(cfg, c)
	}
	config, _ := json.Marshal(obj{
		"architecture": "amd64", "os": "linux", "created": stamp(time.Now()), "config": cfg,
		"rootfs": obj{"type": "layers", "diff_ids": []string{digest(layer)}},
	})
	e.mu.Lock()
	i, err := e.addImage(config, [][]byte{layer})
	if err == nil && q.Get("repo") != "" {
		e.tag(i, q.Get("repo")+":"+q.Get("tag"))
	}
	e.mu.Unlock()
	if err != nil {
		progress(w, obj{"error": err.Error()})
		return
	}
	progress(w, obj{"status": i.id})
}

// change applies a Dockerfile line.
func change(cfg obj, line string) {
	word, rest, _ := strings.Cut(line, " ")
	var list []any
	_ = json.Unmarshal([]byte(rest), &list)
	put := func(field, key string, v any) {
		fill(cfg, field, obj{})
		sub(cfg, field)[key] = v
	}
	switch strings.ToUpper(word) {
	case "ENTRYPOINT":
		cfg["Entrypoint"] = list
	case "CMD":
		cfg["Cmd"] = list
	case "VOLUME":
		put("Volumes", rest, obj{})
	case "EXPOSE":
		put("ExposedPorts", rest+"/tcp", obj{})
	case "LABEL":
		k, v, _ := strings.Cut(rest, "=")
		put("Labels", k, v)
	}
}

func (e *Engine) pull(w http.ResponseWriter, name, tag string) {
	ref := strings.TrimPrefix(strings.TrimPrefix(name, "docker.io/"), "library/") + ":" + tag
	if strings.HasPrefix(tag, "sha256:") {
		ref = name + "@" + tag
	}
	if e.opts.Pull == nil {
		reply(w, refused(http.StatusInternalServerError, "Get \"https://%s/v2/\": the fake engine pulls nothing", name))
		return
	}
	archive, err := e.opts.Pull(ref)
	if err == nil {
		e.mu.Lock()
		_, err = e.loadArchive(archive)
		e.mu.Unlock()
	}
	if err != nil {
		progress(w, obj{"error": err.Error()})
		return
	}
	progress(w, obj{"status": "Pulling", "id": "layer", "progressDetail": obj{"current": len(archive), "total": len(archive)}}, obj{"status": "Status: Downloaded newer image for " + ref})
}

// saved is one entry of an archive's manifest.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (e *Engine) save(w http.ResponseWriter, names []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(names) != 1 {
		reply(w, refused(http.StatusBadRequest, "the fake engine saves one image"))
		return
	}
	i, err := e.findImage(names[0])
	if err != nil {
		reply(w, err)
		return
	}
	entry := saved{Config: i.id[7:] + ".json"}
	if slices.Contains(i.tags, withTag(names[0])) {
		entry.RepoTags = []string{withTag(names[0])}
	}
	t := tar.NewWriter(w)
	add := func(name string, b []byte) {
		_ = t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b)), Typeflag: tar.TypeReg})
		_, _ = t.Write(b)
	}
	for _, l := range i.layers {
		name := digest(l)[7:] + "/layer.tar"
		entry.Layers = append(entry.Layers, name)
		add(name, l)
	}
	add(entry.Config, i.config)
	manifest, _ := json.Marshal([]saved{entry})
	add("manifest.json", manifest)
	_ = t.Close()
}

func (e *Engine) load(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		reply(w, err)
		return
	}
	e.mu.Lock()
	lines, err := e.loadArchive(b)
	e.mu.Unlock()
	if err != nil {
		lines = append(lines, obj{"error": err.Error()})
	}
	progress(w, lines...)
}

func (e *Engine) loadArchive(b []byte) ([]obj, error) {
	files := map[string][]byte{}
	t := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if files[h.Name], err = io.ReadAll(t); err != nil {
			return nil, err
		}
	}
	var manifest []saved
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		return nil, fmt.Errorf("open manifest.json: %w", err)
	}
	var lines []obj
	for _, m := range manifest {
		var layers [][]byte
		for _, l := range m.Layers {
			layers = append(layers, files[l])
		}
		i, err := e.addImage(files[m.Config], layers)
		if err != nil {
			return lines, err
		}
		for _, tag := range m.RepoTags {
			e.tag(i, tag)
			lines = append(lines, obj{"stream": "Loaded image: " + tag + "\n"})
		}
		if len(m.RepoTags) == 0 {
			lines = append(lines, obj{"stream": "Loaded image ID: " + i.id + "\n"})
		}
	}
	return lines, nil
}
