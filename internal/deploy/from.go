package deploy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/cconvert/cconvert/internal/yamledit"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/libos"
)

// Counterpart is the confidential image that takes the place of another one.
type Counterpart struct {
	Image     string // reference, by digest
	Converted *inspect.Converted
	// Notice says what is to be known of the two; empty: nothing.
	Notice string
}

// Finder returns the counterpart of an image by the name that it has in an object; or nil, and the reason why there is
// none.
type Finder func(image string) (c *Counterpart, reason string, err error)

// Note is what a user should know of a container whose image was replaced, or was not.
type Note struct {
	Object, Container string // "Deployment/web", "app"
	Text              string
}

// String is one line.
func (n Note) String() string {
	if n.Container == "" {
		return n.Object + ": " + n.Text
	}
	return n.Object + ", container " + n.Container + ": " + n.Text
}

// templates are the kinds of objects that have containers, with the paths to their pods (Kubernetes API reference,
// "Workload Resources").
var templates = map[string]yamledit.Path{
	"Pod": {}, "PodTemplate": {"template"}, "Deployment": {"spec", "template"}, "StatefulSet": {"spec", "template"},
	"DaemonSet": {"spec", "template"}, "ReplicaSet": {"spec", "template"},
	"ReplicationController": {"spec", "template"}, "Job": {"spec", "template"},
	"CronJob": {"spec", "jobTemplate", "spec", "template"},
}

// Rewrite returns objects of Kubernetes, as YAML, in which every container whose image has a confidential counterpart
// starts that. The rest stays as it is, comments included.
func Rewrite(text []byte, find Finder, o Options) ([]byte, []Note, error) {
	switch {
	case o.Target == Docker || o.Target == Compose:
		return nil, nil, fmt.Errorf("%w: objects of Kubernetes have no meaning for the target %s", ErrOption, o.Target)
	case o.Name+o.Namespace != "" || o.Replicas > 1:
		return nil, nil, fmt.Errorf("%w: name, namespace and number of replicas are those of the objects", ErrOption)
	}
	file, err := yamledit.Parse(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrOption, err)
	}
	r := &rewriter{file: file, find: find, options: o}
	for doc := range file.Documents() {
		err := r.object(doc, nil)
		if errors.Is(err, yamledit.ErrStyle) {
			err = fmt.Errorf("%w: %w", ErrOption, err)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	if r.containers == 0 {
		return nil, nil, fmt.Errorf("%w: the objects have no containers", ErrOption)
	}
	added, err := documents(r.added)
	if err != nil {
		return nil, nil, err
	}
	out := file.Bytes()
	if len(added) > 0 && len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	if o.By != "" && r.replaced > 0 {
		out = append([]byte("# Changed by \""+o.By+"\".\n"), out...)
	}
	return append(out, added...), r.notes, nil
}

// rewriter is at work on a file.
type rewriter struct {
	file       *yamledit.File
	find       Finder
	options    Options
	notes      []Note
	added      []object // that the file does not have
	containers int
	replaced   int
}

// pod is the one that an object starts.
type pod struct {
	doc      int
	template yamledit.Path // to what has its metadata and spec
	kind     string
	name     string
	meta     map[string]any // of the object
}

func (p *pod) String() string { return p.kind + "/" + p.name }

func (p *pod) spec(more ...any) yamledit.Path { return p.template.With("spec").With(more...) }

// object changes an object, or those in a list.
func (r *rewriter) object(doc int, at yamledit.Path) error {
	v, err := r.file.Get(doc, at)
	if err != nil {
		return err
	}
	o, _ := v.(map[string]any)
	kind, _ := o["kind"].(string)
	if items, ok := o["items"].([]any); ok && strings.HasSuffix(kind, "List") {
		for i := range items {
			if err := r.object(doc, at.With("items", i)); err != nil {
				return err
			}
		}
		return nil
	}
	meta, _ := o["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	template, ok := templates[kind]
	if !ok {
		r.untouched(kind+"/"+name, o, "objects of this kind are not known")
		return nil
	}
	p := &pod{doc: doc, template: at.With(template...), kind: kind, name: name, meta: meta}
	r.untouched(p.String(), yamledit.At(o, template.With("spec", "ephemeralContainers")),
		"it is for debugging the others")
	for _, list := range []string{"initContainers", "containers"} {
		containers, err := r.file.Get(doc, p.spec(list))
		if err != nil {
			return err
		}
		l, _ := containers.([]any)
		for i := range l {
			if err := r.container(p, p.spec(list, i)); err != nil {
				return fmt.Errorf("%s, %s[%d]: %w", p, list, i, err)
			}
		}
	}
	return nil
}

// untouched tells of containers below a value that stay as they are.
func (r *rewriter) untouched(object string, v any, why string) {
	switch v := v.(type) {
	case map[string]any:
		if image, ok := v["image"].(string); ok && image != "" {
			name, _ := v["name"].(string)
			r.notes = append(r.notes, Note{object, name, "it stays as it is, and is not confidential: " + why})
		}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			r.untouched(object, v[key], why)
		}
	case []any:
		for _, each := range v {
			r.untouched(object, each, why)
		}
	}
}

// container has a container start the counterpart of its image, if there is one.
func (r *rewriter) container(p *pod, at yamledit.Path) error {
	v, err := r.file.Get(p.doc, at)
	if err != nil {
		return err
	}
	c, _ := v.(map[string]any)
	name, _ := c["name"].(string)
	image, _ := c["image"].(string)
	r.containers++
	note := func(format string, args ...any) {
		r.notes = append(r.notes, Note{p.String(), name, fmt.Sprintf(format, args...)})
	}
	if image == "" {
		note("it names no image, and stays as it is")
		return nil
	}
	other, reason, err := r.find(image)
	if err != nil {
		return err
	}
	if other == nil {
		note("it stays as it is, and is not confidential: %s", reason)
		return nil
	}
	o := r.options
	o.Image, o.Name = other.Image, shortName(cmp.Or(p.name, "pod")+"-"+name)
	w, err := prepare(other.Converted, o)
	if err != nil {
		return err
	}
	r.replaced++
	if w.Simulated() {
		note("what is started is simulated: there is no enclave, and nothing in it is confidential")
	}
	if other.Notice != "" {
		note("%s", other.Notice)
	}
	common, err := r.file.Get(p.doc, p.spec("securityContext"))
	if err != nil {
		return err
	}
	for _, text := range ineffective(w, c, common) {
		note("%s", text)
	}
	if err := r.start(p, at, c, w); err != nil {
		return err
	}
	return r.place(p, at, w, note)
}

// shortName makes a name that leaves room for what is added to it.
func shortName(text string) string {
	name := nameOf(text)
	if len(name) <= maxName {
		return name
	}
	sum := sha256.Sum256([]byte(text))
	return strings.TrimRight(name[:maxName-9], "-") + "-" + hex.EncodeToString(sum[:4])
}

// start writes what is the container's own.
func (r *rewriter) start(p *pod, at yamledit.Path, c map[string]any, w *workload) error {
	set := func(value any, path ...any) error { return r.file.Set(p.doc, at.With(path...), value) }
	if err := set(w.Options.Image, "image"); err != nil {
		return err
	}
	// A command takes the place of the image's entrypoint: the program would run outside of the enclave.
	for _, key := range []string{"command", "args"} {
		if key == "args" && w.Program.HostArgs {
			continue
		}
		if err := r.file.Delete(p.doc, at.With(key)); err != nil {
			return err
		}
	}
	limits := w.limits()
	for _, name := range sortedKeys(limits) {
		if err := set(limits[name], "resources", "limits", name); err != nil {
			return err
		}
	}
	requests, _ := w.resources()["requests"].(object)
	for _, name := range sortedKeys(requests) {
		own := yamledit.At(c, yamledit.Path{"resources", "requests", name}) != nil ||
			yamledit.At(c, yamledit.Path{"resources", "limits", name}) != nil // which the request then is
		if own {
			continue
		}
		if err := set(requests[name], "resources", "requests", name); err != nil {
			return err
		}
	}
	user := w.user()
	for _, name := range sortedKeys(user) {
		if err := set(user[name], "securityContext", name); err != nil {
			return err
		}
	}
	if w.writesImage() && yamledit.At(c, yamledit.Path{"securityContext", "readOnlyRootFilesystem"}) == true {
		if err := set(false, "securityContext", "readOnlyRootFilesystem"); err != nil {
			return err
		}
	}
	return r.capabilities(p, at, c, w)
}

// capabilities adds to those of the container what the start needs, if it was to have less than engines grant.
func (r *rewriter) capabilities(p *pod, at yamledit.Path, c map[string]any, w *workload) error {
	path := yamledit.Path{"securityContext", "capabilities"}
	dropped, _ := yamledit.At(c, path.With("drop")).([]any)
	added, _ := yamledit.At(c, path.With("add")).([]any)
	for _, name := range w.capabilities() {
		if len(dropped) == 0 || slices.Contains(added, any(name)) || slices.Contains(added, any("ALL")) {
			continue
		}
		if err := r.file.Append(p.doc, at.With(path.With("add")...), name); err != nil {
			return err
		}
	}
	return nil
}

// place writes what the container needs of its pod and its node.
func (r *rewriter) place(p *pod, at yamledit.Path, w *workload, note func(string, ...any)) error {
	annotations := w.annotations()
	for _, name := range sortedKeys(annotations) {
		path := p.template.With("metadata", "annotations", name)
		old, err := r.file.Get(p.doc, path)
		if err != nil {
			return err
		}
		if old != nil && old != annotations[name] { // several containers of one pod
			text := fmt.Sprint(old)
			if slices.Contains(strings.Split(text, ","), fmt.Sprint(annotations[name])) {
				continue
			}
			annotations[name] = text + "," + fmt.Sprint(annotations[name])
		}
		if err := r.file.Set(p.doc, path, annotations[name]); err != nil {
			return err
		}
	}
	if !w.Simulated() {
		if w.Target == Intel {
			if err := r.file.Set(p.doc, p.spec("nodeSelector", intelNode), "true"); err != nil {
				return err
			}
		}
		if err := r.appendNew(p.doc, p.spec("tolerations"), w.toleration()); err != nil {
			return err
		}
		if !w.root() {
			if err := r.appendNew(p.doc, p.spec("securityContext", "supplementalGroups"), *w.DeviceGroup); err != nil {
				return err
			}
		}
	}
	for _, name := range w.PullSecrets {
		if err := r.appendNew(p.doc, p.spec("imagePullSecrets"), object{"name": name}); err != nil {
			return err
		}
	}
	return r.volumes(p, at, w, note)
}

// volumes adds those that the image needs and the container does not mount.
func (r *rewriter) volumes(p *pod, at yamledit.Path, w *workload, note func(string, ...any)) error {
	v, err := r.file.Get(p.doc, at.With("volumeMounts"))
	if err != nil {
		return err
	}
	mounts, _ := v.([]any)
	for _, m := range mounts {
		// Whatever lies there would start in the place of the loader.
		dir, _ := yamledit.At(m, yamledit.Path{"mountPath"}).(string)
		if dir = path.Clean("/" + dir); process.Below(libos.Root, dir) || process.Below(dir, libos.Root) {
			return fmt.Errorf("%w: the volume mounted at %s would hide what starts the enclave, in %s", ErrOption, dir,
				libos.Root)
		}
	}
	for _, v := range w.volumes() {
		if slices.ContainsFunc(mounts,
			func(m any) bool { return yamledit.At(m, yamledit.Path{"mountPath"}) == v.path }) {
			continue
		}
		if err := r.appendNew(p.doc, p.spec("volumes"), v.volume()); err != nil {
			return err
		}
		if err := r.file.Append(p.doc, at.With("volumeMounts"), v.mount()); err != nil {
			return err
		}
		if v.source["persistentVolumeClaim"] != nil {
			meta := object{"name": v.name}
			if namespace, ok := p.meta["namespace"]; ok {
				meta["namespace"] = namespace
			}
			r.added = append(r.added, w.claim(meta))
			note("a volume of %s is claimed for %s", w.Storage, v.path)
		}
	}
	if len(w.sealed)+len(w.filled) == 0 || w.root() {
		return nil
	}
	group := p.spec("securityContext", "fsGroup")
	if old, err := r.file.Get(p.doc, group); err != nil || old != nil {
		return err
	}
	return r.file.Set(p.doc, group, w.Program.GID)
}

// appendNew adds an element to a list that does not have it.
func (r *rewriter) appendNew(doc int, at yamledit.Path, value any) error {
	old, err := r.file.Get(doc, at)
	if err != nil {
		return err
	}
	list, _ := old.([]any)
	// Printed, numbers are the same whatever their types, and tables are sorted.
	if slices.ContainsFunc(list, func(v any) bool { return fmt.Sprint(v) == fmt.Sprint(value) }) {
		return nil
	}
	return r.file.Append(doc, at, value)
}

// ineffective returns what a container, or the security context of its pod, asks for that its confidential image does
// not do, one sentence each.
func ineffective(w *workload, c map[string]any, pod any) (list []string) {
	say := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	command, args := words(c["command"]), words(c["args"])
	given := slices.Concat(command, args)
	switch {
	case w.Program.HostArgs && len(command) > 0:
		say("its command is left out: it would start the program outside of the enclave; the arguments stay")
	case w.Program.HostArgs || len(given) == 0:
	case endsWith(w.Program.Argv, given):
		say("command and args are left out: they are measured, as they are")
	default:
		say("command and args %q are left out: what is measured is %q. Convert with --arg to change it", given,
			w.Program.Argv)
	}
	if env, ok := c["env"].([]any); ok {
		for _, v := range env {
			name, _ := yamledit.At(v, yamledit.Path{"name"}).(string)
			if !w.takes(name, yamledit.At(v, yamledit.Path{"value"})) {
				say("the variable %s has no effect: convert with --env %s=VALUE, which is measured, or --pass-env %s, "+
					"which is not", name, name, name)
			}
		}
	}
	if from, ok := c["envFrom"].([]any); ok && len(from) > 0 {
		say("variables of envFrom have no effect, but those that were converted with --pass-env")
	}
	if dir, _ := c["workingDir"].(string); dir != "" && path.Clean(dir) != path.Clean(w.Program.WorkDir) {
		say("workingDir %s has no effect: %s is measured", dir, w.Program.WorkDir)
	}
	if mounts, ok := c["volumeMounts"].([]any); ok {
		for _, v := range mounts {
			at, _ := yamledit.At(v, yamledit.Path{"mountPath"}).(string)
			if !w.opens(path.Clean(at)) {
				say("the program cannot open what is mounted at %s: it has no digest. Convert with --encrypt-mount "+
					"%s, or --allow-file %s if anybody may change it", at, at, at)
			}
		}
	}
	for _, key := range []string{
		"livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop",
	} {
		at := yamledit.Path{}
		for _, step := range strings.Split(key, ".") {
			at = at.With(step)
		}
		if yamledit.At(c, at.With("exec")) != nil {
			say("the command of %s runs outside of the enclave, if it is there at all: it sees nothing of the program",
				key)
		}
	}
	for _, id := range []struct {
		key string
		is  int
	}{{"runAsUser", w.Program.UID}, {"runAsGroup", w.Program.GID}} {
		v, ok := yamledit.At(c, yamledit.Path{"securityContext", id.key}).(float64)
		if !ok {
			v, ok = yamledit.At(pod, yamledit.Path{id.key}).(float64)
		}
		if !ok || int(v) == id.is {
			continue
		}
		if w.root() { // it stays
			say("%s %d is not the program's, which is %d, measured: it must be able to open %s and the image's files",
				id.key, int(v), id.is, enclaveDevice)
		} else {
			say("%s %d has no effect: %d is measured", id.key, int(v), id.is)
		}
	}
	return list
}

// takes reports whether the program gets a variable of the host, or has the same value anyway.
func (w *workload) takes(name string, value any) bool {
	v, ok := w.Program.Env[name]
	if table, _ := v.(map[string]any); table["passthrough"] == true {
		return true
	} else if table != nil {
		v = table["value"]
	}
	return ok && v == value
}

// opens reports whether the program can open what a volume has at a path, without a digest.
func (w *workload) opens(at string) bool {
	covers := func(dir string) bool {
		dir = path.Clean(dir)
		return at == dir || strings.HasPrefix(at, strings.TrimSuffix(dir, "/")+"/")
	}
	if slices.ContainsFunc(w.allowed(), covers) {
		return true
	}
	for _, m := range w.Program.Mounts {
		if covers(m.Path) && m.Type == "encrypted" || at == path.Clean(m.Path) {
			return true // a temporary directory is the enclave's own, whatever is mounted there
		}
	}
	return w.Simulated() || at == aesmDir
}

// words are the elements of a list that are text.
func words(v any) (list []string) {
	l, _ := v.([]any)
	for _, e := range l {
		switch e := e.(type) {
		case string:
			list = append(list, e)
		case float64:
			list = append(list, strconv.FormatFloat(e, 'f', -1, 64))
		}
	}
	return list
}

// endsWith reports whether a list ends with another one.
func endsWith(list, end []string) bool {
	return len(end) <= len(list) && slices.Equal(list[len(list)-len(end):], end)
}

func sortedKeys(o object) []string { return slices.Sorted(maps.Keys(o)) }
