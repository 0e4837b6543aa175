package queue

import "github.com/sirupsen/logrus"

// Log logs what became of a job, for those who read the logs of services: each fact is a field.
func (r *Record) Log() {
	fields := logrus.Fields{"source": r.Job.Source, "target": r.Job.Target, "attempts": r.Attempts}
	if r.Seconds > 0 {
		fields["seconds"] = r.Seconds
	}
	switch r.Status {
	case Converted, Unchanged:
		fields["digest"], fields["mr_enclave"] = r.Digest, r.MREnclave.String()
		if len(r.Warnings) > 0 {
			fields["warnings"] = r.Warnings
		}
		logrus.WithFields(fields).Info(string(r.Status))
	case Skipped:
		logrus.WithFields(fields).Infof("%s: %s", r.Status, r.Error)
	case Retrying:
		logrus.WithFields(fields).Warnf("%s: %s", r.Status, r.Error)
	case Failed:
		logrus.WithFields(fields).Errorf("%s: %s", r.Status, r.Error)
	}
}
