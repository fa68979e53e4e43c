"The page in a real browser: files dropped, faces ranked; no request leaves this machine; large bodies are refused."
import http.client, os, shutil, signal
from urllib.parse import urlparse

import pytest

from clean_process import Another, command

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
pytest.importorskip('gradio', reason="Gradio is not installed (pip install 'vfassoc[app]')")


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "Address of the page of the demo model."
    folder = tmp_path_factory.mktemp('page')
    p = Another(folder, command, 'app', '--port', '0', cwd=folder, no_proxy='127.0.0.1,localhost', OMP_NUM_THREADS='1')
    p.until(lambda: 'http' in p.said and p.said.endswith('\n'))
    yield next(line for line in p.said.splitlines() if line.startswith('http')).strip()
    os.kill(p.p.pid, signal.SIGINT)
    assert p.end(30) in (0, 130)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    from vfassoc.inference.app import drawn_files
    return drawn_files(tmp_path_factory.mktemp('drawn'), 4)


def ask(address, method='GET', body=None, **headers):
    "Status of a request."
    url = urlparse(address)
    c = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    c.putrequest(method, '/', skip_host='Host' in headers)
    for k, v in headers.items(): c.putheader(k.replace('_', '-'), v)
    c.endheaders()
    r = c.getresponse()
    return r.status, dict(r.getheaders())


def test_the_page_listens_on_this_machine_only(page):
    assert urlparse(page).hostname == '127.0.0.1'
    status, headers = ask(page)
    assert status == 200 and "default-src 'self'" in headers['content-security-policy']
    assert ask(page, Host='elsewhere.example')[0] == 400


def test_two_gigabytes_are_refused_before_they_are_read(page):
    assert ask(page, 'POST', Content_Length='2000000000')[0] == 413


@pytest.mark.skipif(not CHROMIUM, reason='no Chromium on this machine (Debian: apt-get install chromium)')
def test_from_upload_to_ranking_in_a_browser(page, drawn, tmp_path):
    from playwright.sync_api import sync_playwright
    voices, faces = drawn
    asked = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        tab = browser.new_page(viewport={'width': 1200, 'height': 1100})
        tab.on('request', lambda r: asked.append(r.url))
        tab.goto(page)
        tab.get_by_role('button', name='Rank the faces').click() # nothing is there yet
        tab.get_by_text('voice: nothing is there').first.wait_for()
        tab.locator('#voice input[type=file]').set_input_files(voices[0])
        tab.locator('#faces input[type=file]').set_input_files(faces)
        tab.get_by_text('face 4').first.wait_for()
        tab.locator('#voice audio, #voice [data-testid*=waveform]').first.wait_for(state='attached')
        tab.get_by_role('button', name='Rank the faces').click()
        tab.locator('#ranked-faces img').nth(3).wait_for()
        text = tab.locator('#ranked-faces').inner_text()
        assert '1. face' in text and '%' in text
        tab.screenshot(path=os.environ.get('VFASSOC_SCREENSHOT') or tmp_path/'page.png', full_page=True)
        tab.get_by_role('tab', name='A face asks').click()
        tab.locator('#try-voices').click()
        tab.locator('#face img').first.wait_for()
        tab.locator('#rank-voices').click()
        tab.get_by_text('1. voice').first.wait_for()
        browser.close()
    hosts = {urlparse(u).hostname for u in asked if urlparse(u).scheme in ('http', 'https', 'ws', 'wss')}
    assert hosts == {'127.0.0.1'}


def test_a_taken_port_is_one_line(page, capsys):
    from vfassoc.cli import main
    assert main(['app', '--port', str(urlparse(page).port)]) == 2
    err = capsys.readouterr().err
    assert str(urlparse(page).port) in err and err.count('\n') == 1
