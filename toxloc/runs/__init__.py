"""The whole job: localize, test by removal, fit, judge, report."""
